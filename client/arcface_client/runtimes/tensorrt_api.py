"""How TensorRT is started and what differs between its versions, from 8.5 to 11.

The TensorRT module is an argument: ``tensorrt``, or ``tensorrt_rtx``, which builds without a GPU.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from ..contract import TensorSpec

_TRITON_TYPES: Final = {"FLOAT": "FP32", "HALF": "FP16"}  # others have the same name in Triton
_RTX_API: Final = (11, 0)


def api_version(trt: ModuleType) -> tuple[int, int]:
    """The version of TensorRT's API: (8, 5), (10, 9). TensorRT-RTX counts its own releases from 1."""
    if trt.__name__ == "tensorrt_rtx":
        return _RTX_API
    major, minor = re.findall(r"\d+", trt.__version__)[:2]
    return int(major), int(minor)


def start(kind: Callable[[Any], Any], log: Any) -> Any | None:
    """Make a TensorRT builder or runtime; None if TensorRT cannot, and the logger has its reason.

    TensorRT holds a lock while it calls a logger, and takes the same lock to free one of its objects. A
    garbage collection inside the logger could therefore wait for ever, so it is done before.
    """
    gc.collect()
    try:
        return kind(log)
    except TypeError:  # pybind11's answer to a null pointer
        return None


def error_log(trt: ModuleType) -> Any:
    """A TensorRT logger that keeps the last error as ``last_error`` and prints nothing."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no reason given"

        def log(self, severity: Any, message: str) -> None:  # called from any of TensorRT's threads
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = message

    return ErrorLog()


def scratch_bytes(trt: ModuleType, engine: Any) -> int:
    """Memory that an execution context needs for the tensors between layers."""
    size = engine.device_memory_size_v2 if api_version(trt) >= (10, 1) else engine.device_memory_size
    return max(1, int(size))


def create_context(trt: ModuleType, engine: Any, address: int, nbytes: int) -> Any:
    """Create an execution context on memory of the caller's; None if TensorRT cannot."""
    if api_version(trt) >= (10, 1):
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is not None:
            context.set_device_memory(address, nbytes)
    else:
        context = engine.create_execution_context_without_device_memory()
        if context is not None:
            context.device_memory = address
    return context


def tensor_specs(trt: ModuleType, engine: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of an engine, as the contract writes them."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(name).name
        batch, *shape = engine.get_tensor_shape(name)
        # TensorRT 8.5 writes the batch of a plan for one crop as 1, later ones as -1.
        dims = tuple(shape) if batch in (-1, 1) else (batch, *shape)
        spec = (name, _TRITON_TYPES.get(dtype, dtype), dims)
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(spec)
    return inputs, outputs
