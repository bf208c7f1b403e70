"""What differs between TensorRT 8.5, 10, 11 and TensorRT-RTX, in one place.

The TensorRT module is an argument everywhere: ``tensorrt`` in use, ``tensorrt_rtx`` in tests, which has
TensorRT 11's API, counts its versions from 1, and builds without a GPU.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from arcface_client.models.embedding_space import QUANTISED
from arcface_client.runtimes.tensorrt_api import start

from ..errors import CompileError, NoGpuError, PrecisionError
from ..store.stored import release_of

_log = logging.getLogger(__name__)

_FIRST_OLD: Final = (8,)  # what is below is TensorRT-RTX
_TEN: Final = (10,)
_OPSET_OF_8: Final = 17
_SAME_COMPUTE_CAPABILITY: Final = (10, 9)

WITHOUT_GPU: Final = (
    "assemble stored plans with --cc ... --from-store, or use --runtime openvino for this processor."
)

# "[file::function::line] Error Code 2: OutOfMemory (...)": only the name tells this failure from others.
_ERROR: Final = re.compile(r"Error Code \d+: ([\w ]+?) \((.*)\)", re.DOTALL)


def find_tensorrt() -> ModuleType:
    """Import TensorRT.

    Raises:
        NoGpuError: It is not installed, or its libraries do not load.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as error:
        raise NoGpuError(
            f"TensorRT cannot be imported ({' '.join(str(error).split())}); use the image "
            "nvcr.io/nvidia/tensorrt of your Triton's release, or pip install the same version of tensorrt. "
            f"Without a GPU, {WITHOUT_GPU}"
        ) from error


def is_strongly_typed(version: str) -> bool:
    """Whether this TensorRT runs a network as its graph says; before 10, the graph's types are hints."""
    return _is_from(version, _TEN)


def newest_opset(version: str) -> int | None:
    """The newest opset that this TensorRT's parser reads; None where it reads all that ONNX Runtime runs."""
    return None if _is_from(version, _TEN) else _OPSET_OF_8


def has_progress_monitor(version: str) -> bool:
    """Whether this TensorRT tells how far a build is, and can stop one (from 10)."""
    return _is_from(version, _TEN)


def can_be_hardware_compatible(version: str) -> bool:
    """Whether this TensorRT can make a plan fit every GPU of its compute capability (from 10.9)."""
    return _is_from(version, _SAME_COMPUTE_CAPABILITY)


def _is_from(version: str, first: tuple[int, ...]) -> bool:
    release = release_of(version)
    return release >= first or release < _FIRST_OLD


def check_knows(version: str, precision: str) -> None:
    """Check that a TensorRT can build for a precision.

    Raises:
        PrecisionError: It cannot.
    """
    if precision == "bf16" and not is_strongly_typed(version):
        raise PrecisionError(f"TensorRT {version} has no bf16; use fp16, or TensorRT 10 or newer.")


def started(trt: ModuleType, kind: Callable[[Any], Any], log: Any, messages: Messages) -> Any:
    """Start TensorRT's builder (``trt.Builder``), or its runtime (``trt.Runtime``), which loads plans.

    Raises:
        NoGpuError: It does not start, for want of a GPU or of memory on it.
    """
    made = start(kind, log)
    if made is None:
        raise NoGpuError(
            f"TensorRT {trt.__version__} does not start: {messages.to_text()}; "
            "it needs a GPU with some hundred MB of free memory."
        )
    return made


def create_network(trt: ModuleType, builder: Any) -> Any:
    """Make an empty network, strongly typed from TensorRT 10 on."""
    flags = trt.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if is_strongly_typed(trt.__version__) else "EXPLICIT_BATCH"
    flag = getattr(flags, name, None)  # a flag that a later TensorRT no longer has is always on there
    return builder.create_network(0 if flag is None else 1 << int(flag))


def set_precision(trt: ModuleType, config: Any, precision: str) -> None:
    """Set the flags that a precision needs beside its graph."""
    flags = trt.BuilderFlag
    # On by default in every version, so that fp32 would not be what its name says.
    (config.set_flag if precision == "tf32" else config.clear_flag)(flags.TF32)
    if is_strongly_typed(trt.__version__):
        return
    if precision in ("fp16", *QUANTISED):
        config.set_flag(flags.FP16)
    if precision in QUANTISED:
        config.set_flag(flags.INT8)


def set_own_kernels(trt: ModuleType, config: Any) -> None:
    """Let TensorRT choose among its own kernels alone.

    A plan that uses cuBLAS or cuDNN does not run where these are missing; newer versions leave them out by
    default.
    """
    sources = trt.TacticSource
    config.set_tactic_sources(1 << int(sources.EDGE_MASK_CONVOLUTIONS) | 1 << int(sources.JIT_CONVOLUTIONS))


def set_hardware_compatible(trt: ModuleType, config: Any) -> bool:
    """Make the plan fit every GPU of its compute capability; False where TensorRT has no such level.

    Raises:
        CompileError: TensorRT has the level and ignores it, as TensorRT-RTX does with only a warning.
    """
    if not can_be_hardware_compatible(trt.__version__):
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
        warnings: Its warnings, in order.
        ran_out_of_memory: Whether an error says so.
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
