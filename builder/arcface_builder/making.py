"""Make a plan: build it, and prove that it gives the source model's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from arcface_client.cli.bars import Tell
from arcface_client.contract import Crops

from .check.divergence import explain_drift
from .check.gate import Verdict, by_drift, judge
from .check.reference_embeddings import Standard
from .errors import ParityError
from .graph.precision import typed_graph
from .plan_request import PlanRequest
from .repository.manifest import tool_versions
from .store import PlanIdentity, PlanManifest, PlanStore, describe_plan
from .store.cache_errors import cache_errors
from .trt.compat import check_knows, is_strongly_typed
from .trt.engine import BuiltPlan, build_plan
from .trt.gpu import Gpu
from .trt.inspect import LayerPrecisions, check_precision
from .trt.options import BuildOptions
from .trt.watching import watch_plan


def make_plan(
    request: PlanRequest,
    options: BuildOptions,
    identity: PlanIdentity,
    gpu: Gpu,
    standard: Callable[[], Standard],
    store: PlanStore,
    report: Tell,
) -> tuple[bytes, PlanManifest]:
    """Build a plan and prove it.

    Args:
        request: What is asked for.
        options: How to build it now: the precision may be a fallback.
        identity: What that makes of it.
        gpu: Where to build and run it.
        standard: What it is held against, made when it is needed.
        store: Where it will be stored.
        report: Is told the stage and how much is done.

    Raises:
        CompileError: It cannot be built, or does not run in its precision.
        ParityError: It does not give the source model's embeddings; the message names the layer where that
            begins, if it can be told.
    """
    check_knows(gpu.trt, options.precision)  # what follows takes minutes
    with store.local.staging():
        pass  # or it would be found out after them that nothing can be stored
    report(f"Writing {options.precision} into the graph", None)
    graph = typed_graph(
        request.onnx.content,
        options.precision,
        calibration=request.calibration,
        strongly_typed=is_strongly_typed(gpu.trt),
    )
    report("Comparing the ONNX model with its source", None)
    standard().check(request.max_drift_cosine)
    built = build_plan(gpu.trt, graph, options, report=report, target_sm=gpu.target_sm, free_mb=gpu.free_mb)
    report("Inspecting the plan", None)
    precisions = gpu.inspect(built.plan)
    for profile in precisions:
        check_precision(profile, options.precision)
    report("Comparing the plan with its source", None)
    verdict, worst_first = _verdict(request, options, gpu, built, standard(), store)
    try:
        verdict.check()
    except ParityError as error:
        report("Looking for the layer that diverges", None)
        content, allowed = request.onnx.content, request.max_drift_cosine
        why = explain_drift(
            content,
            graph,
            standard(),
            precision=options.precision,
            max_drift_cosine=allowed,
            watch=lambda: watch_plan(
                content,
                graph,
                gpu=gpu,
                built=built,
                options=options,
                crops=worst_first,
                batch_sizes=verdict.batch_sizes,
                max_drift_cosine=allowed,
                report=report,
            ),
        )
        raise ParityError(f"{error} Nothing was stored. In {options.precision}, {why}.") from error
    return built.plan, _manifest(request, identity, gpu, built, precisions[0], verdict)


def _verdict(
    request: PlanRequest,
    options: BuildOptions,
    gpu: Gpu,
    built: BuiltPlan,
    standard: Standard,
    store: PlanStore,
) -> tuple[Verdict, Crops]:
    """Judge a plan; and its crops, those first that it embeds worst."""
    with store.local.staging() as folder:  # where it is stored if it passes
        path = folder / "candidate.plan"
        with cache_errors(store.local.root, "write"):
            path.write_bytes(built.plan)
        with gpu.load(path) as plan:
            verdict = judge(
                plan.embed,
                standard,
                max_batch_size=options.max_batch_size,
                max_drift_cosine=request.max_drift_cosine,
            )
            return verdict, by_drift(plan.embed, standard, verdict.batch_sizes)


def _manifest(
    request: PlanRequest,
    identity: PlanIdentity,
    gpu: Gpu,
    built: BuiltPlan,
    precisions: LayerPrecisions,
    verdict: Verdict,
) -> PlanManifest:
    notes: tuple[str, ...] = ()
    if built.workspace_size_mb != request.options.workspace_size_mb:
        notes += (f"out of memory: built with a workspace of {built.workspace_size_mb} MB",)
    notes += (f"built in {built.build_s:.1f} s, timing cache {built.timing_cache}",)
    return PlanManifest(
        **describe_plan(built.plan),
        identity=identity,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gpu_name=gpu.name,
        driver_version=gpu.driver_version,
        precisions_used=precisions.layers,
        parity=verdict.to_parity(),
        rebuild_command=request.command(identity.precision),
        tools=tool_versions() | {gpu.trt.__name__: gpu.trt.__version__},
        notes=notes,
    )
