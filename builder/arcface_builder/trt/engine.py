"""Build a plan from a typed graph."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from arcface_client.contract import CROP_SHAPE, INPUT_NAME, Progress, no_progress

from ..errors import CompileError, WorkspaceError
from . import compat
from .options import LEAST_WORKSPACE_MB, BuildOptions
from .progress import monitor, run_interruptibly

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan, fresh from the builder.

    The workspace is that after halving. The timing cache is "warm" if earlier measurements were used, else
    "cold".
    """

    plan: bytes
    workspace_size_mb: int
    build_s: float
    timing_cache: str


def build_plan(
    trt: ModuleType,
    typed_graph: bytes,
    options: BuildOptions,
    *,
    report: Progress = no_progress,
    target_sm: str | None = None,
    free_mb: Callable[[], int | None] = lambda: None,
) -> BuiltPlan:
    """Build a plan for the current GPU; Ctrl-C ends the build and leaves nothing behind.

    The graph is a serving graph with the precision written into it. ``target_sm`` builds for another
    architecture, which only TensorRT-RTX can. ``free_mb`` gives the GPU's free memory in MiB, if it is known.

    Raises:
        CompileError: TensorRT cannot parse the graph or build it; the message has its own reason.
        WorkspaceError: It ran out of memory even with the smallest workspace.
    """
    compat.check_knows(trt.__version__, options.precision)
    workspace_mb = options.workspace_size_mb
    while True:
        messages = compat.Messages()
        built = _attempt(trt, typed_graph, options, workspace_mb, messages, report, target_sm)
        if built is not None:
            return built
        free = free_mb()
        state = "" if free is None else f" The GPU has {free} MB of memory free."
        # TensorRT does not always say that memory was what it lacked.
        if not messages.ran_out_of_memory and (free is None or free >= workspace_mb):
            reason = messages.to_text().rstrip(".")
            raise CompileError(
                f"TensorRT {trt.__version__} cannot build the plan: {reason}.{state} "
                "The ONNX model serves as it is."
            )
        if workspace_mb <= LEAST_WORKSPACE_MB:
            raise WorkspaceError(
                f"TensorRT ran out of memory with a workspace of {workspace_mb} MB, the least that is tried "
                f"({messages.to_text()}); free memory on the GPU, or lower tensorrt.max_batch_size. "
                f"tensorrt.workspace_size_mb was {options.workspace_size_mb}.{state}"
            )
        smaller_mb = max(LEAST_WORKSPACE_MB, workspace_mb // 2)
        _log.warning("Out of memory with a workspace of %d MB; trying %d MB", workspace_mb, smaller_mb)
        workspace_mb = smaller_mb


def _attempt(
    trt: ModuleType,
    typed_graph: bytes,
    options: BuildOptions,
    workspace_mb: int,
    messages: compat.Messages,
    report: Progress,
    target_sm: str | None,
) -> BuiltPlan | None:
    """Build once; None if TensorRT could not."""
    log = compat.logger(trt, messages)
    builder = compat.started(trt, trt.Builder, log, messages)
    network = compat.create_network(trt, builder)
    parser = _parse(trt, network, typed_graph, log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    compat.set_precision(trt, config, options.precision)
    compat.set_own_kernels(trt, config)
    if target_sm is not None:
        compat.set_target(trt, config, target_sm)
    elif options.hardware_compatible and not compat.set_hardware_compatible(trt, config):
        _log.info(
            "TensorRT %s cannot make plans for a whole compute capability: this one is for this GPU model",
            trt.__version__,
        )
    _add_profiles(builder, config, options)
    timings, state = _timing_cache(config, options.timing_cache)

    cancelled, start = threading.Event(), time.monotonic()
    watcher = monitor(trt, cancelled)
    if watcher is not None:
        config.progress_monitor = watcher

    def tick() -> None:
        report(*watcher.now if watcher is not None else ("TensorRT", None))

    serialized = run_interruptibly(
        partial(_serialize, builder, network, config, (parser, timings)),
        tick=tick,
        cancelled=cancelled,
    )
    build_s = time.monotonic() - start
    if serialized is None:
        return None
    if options.timing_cache is not None:
        _save(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return BuiltPlan(
        plan=bytes(serialized),
        workspace_size_mb=workspace_mb,
        build_s=build_s,
        timing_cache=state,
    )


def _serialize(builder: Any, network: Any, config: Any, needed: object) -> Any:
    """Build; the parser owns the network's weights, so that it has to live until the end, with the timings.

    After Ctrl-C only the thread that runs this still holds them.
    """
    return builder.build_serialized_network(network, config)


def _parse(trt: ModuleType, network: Any, typed_graph: bytes, log: Any) -> Any:
    parser = trt.OnnxParser(network, log)
    if parser.parse(typed_graph):
        return parser
    error = parser.get_error(0)
    where = ""
    if error.node() >= 0:
        node = onnx.load_model_from_string(typed_graph).graph.node[error.node()]
        where = f" at the {node.op_type} node {node.name or error.node()!r}"
    raise CompileError(
        f"TensorRT {trt.__version__} cannot parse the graph{where}: {' '.join(error.desc().split())}. "
        "The ONNX model serves as it is."
    )


def _add_profiles(builder: Any, config: Any, options: BuildOptions) -> None:
    for sizes in options.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *((size, *CROP_SHAPE) for size in sizes))
        config.add_optimization_profile(profile)


def _timing_cache(config: Any, path: Path | None) -> tuple[Any, str]:
    """Give a build the measurements of earlier ones; TensorRT takes none of another version or GPU.

    Returns:
        The cache, which the build must not outlive, and "warm" if it has measurements, else "cold".
    """
    try:
        blob = b"" if path is None else path.read_bytes()
    except OSError:  # there is none yet, most often
        blob = b""
    cache = config.create_timing_cache(blob)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, "warm" if blob else "cold"
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache, "cold"


def _save(path: Path, timings: bytes) -> None:
    """Write the timing cache by one rename; a failure is a warning, since the plan is worth more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            file.write(timings)
        Path(file.name).replace(path)
    except OSError as error:
        _log.warning("Cannot write the timing cache %s (%s); the next build measures again", path, error)
