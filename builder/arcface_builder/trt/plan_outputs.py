"""A plan with whatever outputs it has, for a look at its layers; the client's runtime is for plans in use."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as cudart

from arcface_client.contract import INPUT_NAME, Crops
from arcface_client.runtimes.cuda import DeviceBuffer, check
from arcface_client.runtimes.tensorrt import Profiles

from ..errors import CompileError

_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


class PlanOutputs:
    """A deserialised engine whose outputs are all float32, on the current GPU.

    Args:
        engine: The engine.
        log: What its runtime says.

    Raises:
        CudaError: The GPU has no memory for it.
        DeploymentError: TensorRT cannot run it.
    """

    def __init__(self, engine: Any, log: Any) -> None:
        self._log = log
        names = (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
        self._outputs = [name for name in names if name != INPUT_NAME]
        with ExitStack() as taken:
            self._stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
            taken.callback(cudart.cudaStreamDestroy, self._stream)
            self._profiles = Profiles(engine, self._stream, log)
            taken.callback(self._profiles.close)
            self._taken = taken.pop_all()

    def __call__(self, crops: Crops) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch, in the profile that the runtime would choose for it.

        Args:
            crops: C-contiguous uint8 [N, 112, 112, 3].
        """
        context = self._profiles.context_for(len(crops))
        if not context.set_input_shape(INPUT_NAME, crops.shape):
            raise CompileError(f"TensorRT does not take a batch of {len(crops)}: {self._log.last_error}")
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        with ExitStack() as taken:

            def buffer(name: str, nbytes: int) -> int:
                memory = DeviceBuffer(nbytes)
                taken.callback(memory.free)
                self._profiles.set_address(name, memory.address)
                return memory.address

            address = buffer(INPUT_NAME, crops.nbytes)
            addresses = {name: buffer(name, array.nbytes) for name, array in arrays.items()}
            check(cudart.cudaMemcpy(address, crops.ctypes.data, crops.nbytes, _TO_DEVICE))
            if not context.execute_async_v3(int(self._stream)):
                raise CompileError(f"TensorRT cannot run a batch of {len(crops)}: {self._log.last_error}")
            check(cudart.cudaStreamSynchronize(self._stream))
            for name, array in arrays.items():
                check(cudart.cudaMemcpy(array.ctypes.data, addresses[name], array.nbytes, _TO_HOST))
        return arrays

    def close(self) -> None:
        """Free what it has on the GPU."""
        self._taken.close()
