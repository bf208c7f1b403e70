"""The part of CUDA that a runtime needs, over NVIDIA's ``cuda-bindings``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver
from cuda.bindings import runtime as cudart

from ..errors import CudaError


def check(result: tuple[Any, ...]) -> Any:
    """Return what a call of ``cuda.bindings.runtime`` returned, without its error code.

    Raises:
        CudaError: The error code is not success.
    """
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(error)[1].decode()
        raise CudaError(f"CUDA says {error.name}: {text}")
    return values[0] if len(values) == 1 else tuple(values)


def device_count() -> int:
    """Number of GPUs that CUDA can use; 0 also without a driver.

    Raises:
        CudaError: The driver is too old or broken.
    """
    error, count = cudart.cudaGetDeviceCount()
    if error == cudart.cudaError_t.cudaErrorNoDevice:
        return 0
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
        supported = check(cudart.cudaDriverGetVersion())
        if supported == 0:  # no driver
            return 0
        needed = version_text(check(cudart.cudaRuntimeGetVersion()))
        raise CudaError(
            f"The GPU's driver supports CUDA {version_text(supported)}; the installed package cuda-bindings "
            f"needs {needed}. Update the driver, or run pip install 'cuda-bindings<{supported // 1000 + 1}'"
        )
    return cast("int", check((error, count)))


def version_text(number: int) -> str:
    """Write CUDA's version number in the usual form: 13000 is "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def compute_capability(device: int) -> str:
    """Compute capability of a GPU in Triton's form: "8.6"."""
    attributes = cudart.cudaDeviceAttr
    major = check(cudart.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMajor, device))
    minor = check(cudart.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMinor, device))
    return f"{major}.{minor}"


def free_bytes() -> int:
    """Free memory of the current GPU."""
    return int(check(cudart.cudaMemGetInfo())[0])


@contextmanager
def current_gpu_kept() -> Iterator[None]:
    """After the block, make the thread's GPU current again that was current before, or none.

    All libraries of the process share the driver's context. ``cudaSetDevice`` would start CUDA on a GPU that
    the caller does not use.
    """
    _, before = driver.cuCtxGetCurrent()  # none also if CUDA was not started
    try:
        yield
    finally:
        driver.cuCtxSetCurrent(before)  # fails only if its owner has destroyed it


def recorded(enqueue: Callable[[], object], stream: cudart.cudaStream_t) -> cudart.cudaGraphExec_t:
    """Record what ``enqueue`` starts on the stream as a CUDA graph, without running it.

    ``enqueue`` must have run before, since some of what libraries do the first time cannot be recorded.
    """
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(cudart.cudaStreamBeginCapture(stream, mode))
    try:
        enqueue()
    except BaseException:
        cudart.cudaStreamEndCapture(stream)  # its error only says that the capture failed
        raise
    graph = check(cudart.cudaStreamEndCapture(stream))
    try:
        return check(cudart.cudaGraphInstantiate(graph, 0))
    finally:
        cudart.cudaGraphDestroy(graph)


class DeviceBuffer:
    """Memory on the current GPU."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(check(cudart.cudaMalloc(nbytes)))

    def free(self) -> None:
        """Free the memory."""
        check(cudart.cudaFree(self.address))


class PinnedBuffer:
    """Page-locked memory of the host, which the GPU copies from and to without the CPU."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        kind = np.dtype(dtype)
        self.nbytes = int(np.prod(shape)) * kind.itemsize
        self.address = int(check(cudart.cudaMallocHost(self.nbytes)))
        memory = (ctypes.c_byte * self.nbytes).from_address(self.address)
        self.array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(kind).reshape(shape)

    def free(self) -> None:
        """Free the memory; the array must not be used afterwards."""
        check(cudart.cudaFreeHost(self.address))
