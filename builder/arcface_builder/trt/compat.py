"""What differs between TensorRT 8.5, 10, 11 and TensorRT-RTX, in one place.

The TensorRT module is an argument everywhere: ``tensorrt`` in use, ``tensorrt_rtx`` (TensorRT 11's API,
builds without a GPU) in tests. A flag is set only where a version needs it.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from arcface_client.runtimes.tensorrt_api import start

from ..errors import CompileError, NoGpuError, PrecisionError

_log = logging.getLogger(__name__)

# "[file::function::line] Error Code 2: OutOfMemory (...)": the name is all that tells this failure from
# others. The number, which is all that an error recorder gets, stands for INTERNAL_ERROR.
_ERROR: Final = re.compile(r"Error Code \d+: ([\w ]+?) \((.*)\)", re.DOTALL)


def find_tensorrt() -> ModuleType:
    """Import TensorRT.

    Raises:
        NoGpuError: It is not installed, or its libraries do not load.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as error:  # whatever its own start runs into
        raise NoGpuError(
            f"TensorRT cannot be imported ({' '.join(str(error).split())}); use the image "
            "nvcr.io/nvidia/tensorrt of your Triton's release, or pip install the same version of tensorrt."
        ) from error


def is_strongly_typed(trt: ModuleType) -> bool:
    """Whether networks run as the graph says; before, a graph's types are hints and flags give leave."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def create_builder(trt: ModuleType, log: Any, messages: Messages) -> Any:
    """Start TensorRT, with a logger that fills the messages.

    Raises:
        NoGpuError: It does not start, for want of a GPU or of memory on it.
    """
    return _started(trt, trt.Builder, log, messages)


def create_runtime(trt: ModuleType, log: Any, messages: Messages) -> Any:
    """Start what loads plans, likewise."""
    return _started(trt, trt.Runtime, log, messages)


def _started(trt: ModuleType, kind: Callable[[Any], Any], log: Any, messages: Messages) -> Any:
    made = start(kind, log)
    if made is None:
        raise NoGpuError(
            f"TensorRT {trt.__version__} does not start: {messages.to_text()}; "
            "it needs a GPU with some hundred MB of free memory."
        )
    return made


def create_network(trt: ModuleType, builder: Any) -> Any:
    """Make an empty network, strongly typed where that exists."""
    flags = trt.NetworkDefinitionCreationFlag
    flag = flags.STRONGLY_TYPED if is_strongly_typed(trt) else flags.EXPLICIT_BATCH
    return builder.create_network(1 << int(flag))


def check_knows(trt: ModuleType, precision: str) -> None:
    """Check that a TensorRT can build for a precision.

    Raises:
        PrecisionError: It does not know it.
    """
    if precision == "bf16" and not is_strongly_typed(trt):
        raise PrecisionError(
            f"TensorRT {trt.__version__} does not know bf16; use fp16, or TensorRT 10 or newer."
        )


def set_precision(trt: ModuleType, config: Any, precision: str) -> None:
    """Set the flags that a precision, which this TensorRT knows, needs beside its graph."""
    flags = trt.BuilderFlag
    # On by default in every version, so that fp32 would not be what it says.
    (config.set_flag if precision == "tf32" else config.clear_flag)(flags.TF32)
    if is_strongly_typed(trt):
        return
    if precision in ("fp16", "int8"):
        config.set_flag(flags.FP16)
    if precision == "int8":
        config.set_flag(flags.INT8)


def set_own_kernels(trt: ModuleType, config: Any) -> None:
    """Let TensorRT choose among its own kernels alone.

    cuBLAS and cuDNN are not everywhere that TensorRT is, newer versions leave them out by default, and
    a plan that needs them does not run without them.
    """
    sources = trt.TacticSource
    config.set_tactic_sources(1 << int(sources.EDGE_MASK_CONVOLUTIONS) | 1 << int(sources.JIT_CONVOLUTIONS))


def can_be_hardware_compatible(trt: ModuleType) -> bool:
    """Whether TensorRT can make a plan fit every GPU of its compute capability (from 10.9)."""
    return hasattr(getattr(trt, "HardwareCompatibilityLevel", None), "SAME_COMPUTE_CAPABILITY")


def set_hardware_compatible(trt: ModuleType, config: Any) -> bool:
    """Make the plan fit every GPU of its compute capability; False where TensorRT has no such level.

    Raises:
        CompileError: It has the level and does not take it, as TensorRT-RTX, which only warns: the plan
            would be stored as what it is not.
    """
    if not can_be_hardware_compatible(trt):
        return False
    level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    config.hardware_compatibility_level = level
    if config.hardware_compatibility_level != level:
        raise CompileError(
            f"{trt.__name__} {trt.__version__} cannot make a plan for a whole compute capability, though it "
            "names such a level; set tensorrt.hardware_compatible to false for one of this GPU model."
        )
    return True


def set_target(trt: ModuleType, config: Any, sm: str) -> None:
    """Build for another GPU than the one at hand; only TensorRT-RTX can."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{sm}"], 0)


class Messages:
    """What TensorRT said during one build.

    Attributes:
        errors: Its errors, the first one first.
        warnings: Its warnings, likewise.
        ran_out_of_memory: Whether one of them says so.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.ran_out_of_memory = False

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(" ".join(text.split()))

    def fail(self, text: str) -> None:
        """Keep an error."""
        match = _ERROR.search(text)
        name, detail = match.groups() if match else ("", text)
        self.errors.append(" ".join(detail.split()))
        # The second is CUDA's own name for cudaErrorMemoryAllocation.
        self.ran_out_of_memory |= name == "OutOfMemory" or (
            name == "Cuda Runtime" and "out of memory" in detail
        )

    def to_text(self) -> str:
        """The first error, which is the cause of the others; or else the last warning."""
        return next(iter(self.errors or self.warnings[-1:]), "no reason given")


def logger(trt: ModuleType, messages: Messages) -> Any:
    """A TensorRT logger that collects; TensorRT calls it from any of its threads."""
    take = {
        trt.ILogger.INTERNAL_ERROR: messages.fail,
        trt.ILogger.ERROR: messages.fail,
        trt.ILogger.WARNING: messages.warn,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in take:
                take[severity](message)
                _log.debug("TensorRT: %s", message)

    return Logger()
