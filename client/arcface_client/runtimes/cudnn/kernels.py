"""The two kernels of our own: the first layer, from bytes, and the last step, to unit vectors.

cuDNN would pad the three channels of the image to eight, which takes a tenth of the network's time, and has
no L2 normalisation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from importlib import resources
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver, nvrtc

from ...errors import CudaError, DeploymentError, MissingExtraError
from .network import Affine, Array, Convolution, Layer, Network, Value

_SOURCE: Final = "kernels.cu"
_TAPS: Final = 10  # of a kernel's row: 3 pixels of 3 channels, and one of weight 0
_DEPTH: Final = 32
_ROWS: Final = 2  # of the output, that a block computes at a time
_BLOCKS_PER_PROCESSOR: Final = 2
_LAST_THREADS: Final = 256


class Kernels:
    """Both kernels, compiled for a network and loaded on the current GPU.

    Args:
        network: The network.
        sm: Compute capability of the GPU, for example "90".
        processors: Its multiprocessors.

    Raises:
        MissingExtraError: NVRTC, CUDA's compiler, is not installed.
        DeploymentError: NVRTC cannot compile for this GPU.
    """

    def __init__(self, network: Network, sm: str, processors: int) -> None:
        first = network.first
        options = {
            "CHANNELS": len(first.bias),
            "STRIDE": first.stride,
            "PLAIN_STRIDE": stride_of_readers(first.output, network.layers),
        }
        self._module = _checked(driver.cuModuleLoadData(compiled(options, sm)))
        self._first = _checked(driver.cuModuleGetFunction(self._module, b"first_layer"))
        self._last = _checked(driver.cuModuleGetFunction(self._module, b"last_step"))
        self._strips = first.output.size // _ROWS
        self._threads = 32 * -(-first.output.size // 16)
        self._most_blocks = processors * _BLOCKS_PER_PROCESSOR

    def first_layer(
        self,
        images: int,
        count: int,
        mean: Array,
        unit: float,
        addresses: tuple[int, int, int, int],
        stream: Any,
    ) -> None:
        """Start the first layer.

        Args:
            images: Address of the crops.
            count: How many they are.
            mean: B, G and R, subtracted from the bytes.
            unit: What the packed weights are multiplied by.
            addresses: Of the packed weights, the packed constants, the output, and the output behind a batch
                norm (0 without one).
            stream: The CUDA stream.
        """
        strips = count * self._strips
        self._launch(
            self._first,
            min(strips, self._most_blocks),
            self._threads,
            0,
            stream,
            [
                (images, ctypes.c_void_p),
                (strips, ctypes.c_int),
                *((float(value), ctypes.c_float) for value in mean),
                (unit, ctypes.c_float),
                *((address, ctypes.c_void_p) for address in addresses),
            ],
        )

    def last_step(
        self, parts: int, splits: int, dim: int, bias: int, embeddings: int, count: int, stream: Any
    ) -> None:
        """Start the last step: add up the Gemm's parts, float32 [splits, count, dim], and normalise."""
        self._launch(
            self._last,
            count,
            _LAST_THREADS,
            dim * 4,
            stream,
            [
                (parts, ctypes.c_void_p),
                (splits, ctypes.c_int),
                (dim, ctypes.c_int),
                (bias, ctypes.c_void_p),
                (embeddings, ctypes.c_void_p),
            ],
        )

    def close(self) -> None:
        """Unload the kernels."""
        _checked(driver.cuModuleUnload(self._module))

    @staticmethod
    def _launch(
        kernel: Any, blocks: int, threads: int, shared: int, stream: Any, arguments: list[tuple[Any, Any]]
    ) -> None:
        values, types = zip(*arguments, strict=True)
        _checked(
            driver.cuLaunchKernel(
                kernel, blocks, 1, 1, threads, 1, 1, shared, int(stream), (values, types), 0
            )
        )


def packed_weights(first: Convolution) -> tuple[npt.NDArray[np.float16], float]:
    """The first convolution's weights as its kernel reads them, and the unit that they are in.

    The weights take bytes to numbers around one, so that many are below what FP16 has all its digits for. The
    unit, a power of two, brings the largest one near to one.

    Returns:
        FP16 [K, 32], a row of the kernel, its pixels' channels, and a zero, three times, then two zeros.
    """
    weight = first.weight.transpose(0, 2, 3, 1).reshape(
        len(first.weight), 3, 9
    )  # [K, row, pixel and channel]
    unit = 2.0 ** np.ceil(np.log2(max(float(np.abs(weight).max()), 2.0**-100)))
    packed = np.zeros((len(weight), 3, _TAPS), np.float16)
    packed[:, :, :9] = weight / unit
    return np.pad(packed.reshape(len(weight), -1), ((0, 0), (0, _DEPTH - 3 * _TAPS))), float(unit)


def packed_constants(first: Convolution, shifted: Affine | None) -> Array:
    """Bias, slope, and scale and shift of the batch norm for each channel, float32 [K, 4]."""
    if first.slopes is None:
        raise ValueError("The first convolution has no PRelu.")
    zeros = np.zeros_like(first.bias)
    scale, shift = (zeros, zeros) if shifted is None else (shifted.scale, shifted.shift)
    return np.stack([first.bias, first.slopes, scale, shift], axis=1)


def stride_of_readers(value: Value, layers: Iterable[Layer]) -> int:
    """The stride in which the layers that read a feature map skip pixels, which then need not be there.

    In an IResNet the first layer's output itself goes only to the first shortcut, which reads a quarter.
    """
    strides = {
        layer.stride
        if isinstance(layer, Convolution) and layer.weight.shape[2] == 1 and layer.residual != value
        else 1
        for layer in layers
        if value in layer.sources
    }
    return strides.pop() if len(strides) == 1 else 1


def compiled(constants: dict[str, int], sm: str) -> bytes:
    """Compile the kernels to machine code.

    Raises:
        MissingExtraError: NVRTC is not installed.
        DeploymentError: It cannot compile for this GPU.
    """
    source = resources.files(__package__).joinpath(_SOURCE).read_bytes()
    options = [b"--gpu-architecture=sm_" + sm.encode()]
    options += [f"--define-macro={name}={value}".encode() for name, value in constants.items()]
    try:
        version = ".".join(map(str, _nvrtc(nvrtc.nvrtcVersion())))
        program = _nvrtc(nvrtc.nvrtcCreateProgram(source, _SOURCE.encode(), 0, None, None))
    except RuntimeError as error:  # cuda-bindings does not find the library
        raise MissingExtraError(
            "cuDNN needs NVRTC, CUDA's compiler: pip install nvidia-cuda-nvrtc, of the CUDA version that "
            f"cuda-bindings has ({str(error).splitlines()[0]})"
        ) from error
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _nvrtc(nvrtc.nvrtcGetProgramLogSize(program))
            nvrtc.nvrtcGetProgramLog(program, log)
            said = log.decode(errors="replace").strip(" \n\0") or result.name
            raise DeploymentError(
                f"NVRTC {version} cannot compile for compute capability {sm}: {said.splitlines()[0]}"
            )
        code = b" " * _nvrtc(nvrtc.nvrtcGetCUBINSize(program))
        _nvrtc(nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise DeploymentError(f"NVRTC, CUDA's compiler, failed: {error.name}")
    return values[0] if len(values) == 1 else values


def _checked(result: tuple[Any, ...]) -> Any:
    """As ``cuda.check``, for ``cuda.bindings.driver``."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise CudaError(f"CUDA says {error.name}: {driver.cuGetErrorString(error)[1].decode()}")
    return values[0] if values else None
