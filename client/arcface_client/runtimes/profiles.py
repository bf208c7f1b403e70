"""The optimisation profiles of a plan: which kernels run a batch of which size."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import tensorrt as trt
from cuda.bindings import runtime as cudart

from ..contract import INPUT_NAME
from ..errors import DeploymentError
from .cuda import DeviceBuffer, check
from .tensorrt_log import CollectingLogger


class Profiles:
    """One execution context for each optimisation profile, all on one piece of scratch memory.

    A context that changes its profile would make the CUDA graphs invalid that were recorded from it. The
    memory can be shared because one batch runs at a time.

    Args:
        engine: A deserialised engine.
        stream: The CUDA stream that everything runs on.
        log: What the engine's runtime says.

    Raises:
        CudaError: The GPU has no memory for it.
        DeploymentError: TensorRT cannot run the engine.
    """

    def __init__(self, engine: Any, stream: cudart.cudaStream_t, log: CollectingLogger) -> None:
        self._log = log
        shapes = [
            engine.get_tensor_profile_shape(INPUT_NAME, index)
            for index in range(engine.num_optimization_profiles)
        ]
        self._batches = [tuple(int(shape[0]) for shape in profile) for profile in shapes]
        self.max_batch_size = max(largest for _, _, largest in self._batches)
        """The largest batch that any of them takes."""

        self._scratch = _Scratch(engine)
        self._contexts: list[Any] = []
        with ExitStack() as taken:
            taken.callback(self.close)
            for index in range(len(self._batches)):
                context = self._scratch.create_context()
                if context is None or not context.set_optimization_profile_async(index, int(stream)):
                    raise DeploymentError(
                        f"TensorRT cannot run optimisation profile {index} of the plan: {log.last_error}"
                    )
                self._contexts.append(context)
            check(cudart.cudaStreamSynchronize(stream))
            taken.pop_all()

    def context_for(self, count: int) -> Any:
        """The context of the profile that was tuned for the batch size nearest to this one."""
        fitting = [
            (abs(tuned_for - count), index)
            for index, (smallest, tuned_for, largest) in enumerate(self._batches)
            if smallest <= count <= largest
        ]
        return self._contexts[min(fitting)[1]]

    def set_address(self, tensor: str, address: int) -> None:
        """Tell all contexts where an input or output lies.

        Raises:
            DeploymentError: TensorRT refuses the address.
        """
        for context in self._contexts:
            if not context.set_tensor_address(tensor, address):
                raise DeploymentError(f"TensorRT refuses memory for {tensor}: {self._log.last_error}")

    def close(self) -> None:
        """Free the contexts and their memory."""
        self._contexts.clear()
        self._scratch.free()


class _Scratch:
    """Memory for the tensors between layers; TensorRT's names for it changed with version 10."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._is_newer = hasattr(engine, "device_memory_size_v2")  # 10.1
        size = engine.device_memory_size_v2 if self._is_newer else engine.device_memory_size
        self._buffer = DeviceBuffer(max(1, size))

    def create_context(self) -> Any:
        """Create an execution context on this memory; None if TensorRT cannot."""
        if not self._is_newer:
            context = self._engine.create_execution_context_without_device_memory()
            if context is not None:
                context.device_memory = self._buffer.address
        else:
            context = self._engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            if context is not None:
                context.set_device_memory(self._buffer.address, self._buffer.nbytes)
        return context

    def free(self) -> None:
        self._engine = None
        self._buffer.free()
