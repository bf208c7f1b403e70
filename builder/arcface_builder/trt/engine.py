"""Build a plan from a typed graph."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import onnx

from arcface_client.cli.bars import Tell
from arcface_client.contract import CROP_SHAPE, INPUT_NAME

from ..errors import CompileError, WorkspaceError
from . import compat as toolkit
from .options import LEAST_WORKSPACE_MB, MIN_BATCH_SIZE, SMALL_BATCH, BuildOptions
from .progress import Phases, monitor, run_interruptibly
from .timing_cache import TimingCache

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan, fresh from the builder.

    Attributes:
        plan: Its bytes.
        workspace_size_mb: The workspace that it was built with, after halving.
        build_s: How long the build took.
        timing_cache: What the timing cache was good for: "warm", "cold" and why, or "none".
        timings: What TensorRT measured of kernels, for another build by it on this GPU.
    """

    plan: bytes
    workspace_size_mb: int
    build_s: float
    timing_cache: str
    timings: bytes = field(repr=False)


def build_plan(
    trt: ModuleType,
    typed_graph: bytes,
    options: BuildOptions,
    *,
    report: Tell = lambda stage, done: None,
    target_sm: str | None = None,
    free_mb: Callable[[], int | None] = lambda: None,
    timings: bytes = b"",
) -> BuiltPlan:
    """Build a plan for the current GPU; Ctrl-C ends it and leaves nothing behind.

    Args:
        trt: The TensorRT module.
        typed_graph: A serving graph with the precision written into it.
        options: The user's choices.
        report: Is told the stage and how much is done.
        target_sm: Build for another architecture; TensorRT-RTX alone can.
        free_mb: Tells how much memory of the GPU is free, in MiB, or None where nobody knows.
        timings: What a build before measured, in place of the timing cache's content.

    Raises:
        CompileError: TensorRT cannot parse the graph or build it; the message has its own reason.
        OptionError: The timing cache cannot be read.
        WorkspaceError: It ran out of memory with the smallest workspace, too.
    """
    toolkit.check_knows(trt, options.precision)
    workspace_mb = options.workspace_size_mb
    while True:
        messages = toolkit.Messages()
        built = _attempt(trt, typed_graph, options, workspace_mb, messages, report, target_sm, timings)
        if built is not None:
            return built
        free = free_mb()
        state = "" if free is None else f" The GPU has {free} MB of memory free."
        # TensorRT does not always say that it was memory that it lacked.
        if not messages.ran_out_of_memory and (free is None or free >= workspace_mb):
            reason = messages.to_text().rstrip(".")
            raise CompileError(f"TensorRT {trt.__version__} cannot build the plan: {reason}.{state}")
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
    messages: toolkit.Messages,
    report: Tell,
    target_sm: str | None,
    timings: bytes,
) -> BuiltPlan | None:
    """Build once; None if TensorRT could not."""
    log = toolkit.logger(trt, messages)
    builder = toolkit.create_builder(trt, log, messages)
    network = toolkit.create_network(trt, builder)
    parser = _parse(trt, network, typed_graph, log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    toolkit.set_precision(trt, config, options.precision)
    toolkit.set_own_kernels(trt, config)
    if target_sm is not None:
        toolkit.set_target(trt, config, target_sm)
    elif options.hardware_compatible and not toolkit.set_hardware_compatible(trt, config):
        _log.info(
            "TensorRT %s cannot make plans for a whole compute capability: this one is for this GPU model",
            trt.__version__,
        )
    _add_profiles(builder, config, options)
    cache = TimingCache(trt, options.timing_cache, timings)
    cache.attach(config)

    phases, cancelled, start = Phases(), threading.Event(), time.monotonic()
    watcher = monitor(trt, phases, cancelled)
    if watcher is not None:
        config.progress_monitor = watcher

    def tick() -> None:
        report(phases.current, phases.fraction if watcher is not None else None)

    serialized = run_interruptibly(
        partial(_serialize, builder, network, config, parser),
        tick=tick,
        cancelled=cancelled,
        stoppable=watcher is not None,
    )
    build_s = time.monotonic() - start
    if serialized is None:
        return None
    return BuiltPlan(
        plan=bytes(serialized),
        workspace_size_mb=workspace_mb,
        build_s=build_s,
        timing_cache=cache.state,
        timings=cache.save(config),
    )


def _serialize(builder: Any, network: Any, config: Any, parser: Any) -> Any:
    """Build; the parser owns the weights that the network points to, and has to live until the end.

    After Ctrl-C that is the end of the process: nobody but this thread holds the parser any more.
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
        f"TensorRT {trt.__version__} cannot parse the graph{where}: {' '.join(error.desc().split())}"
    )


def _add_profiles(builder: Any, config: Any, options: BuildOptions) -> None:
    batches = [(MIN_BATCH_SIZE, options.tuned_for, options.max_batch_size)]
    if options.has_small_batch_profile:
        batches.append((1, 1, min(SMALL_BATCH, options.max_batch_size)))
    for sizes in batches:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *((size, *CROP_SHAPE) for size in sizes))
        config.add_optimization_profile(profile)
