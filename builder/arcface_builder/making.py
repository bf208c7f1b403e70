"""Make a plan: build it, and prove that it gives the source model's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone

from arcface_client.cli.bars import Tell

from .check.accuracy import AccuracyReport, ReferenceEmbeddings
from .check.refusal import keep_refusal
from .errors import ParityError
from .graph.precision import typed_graph
from .plan_request import PlanRequest
from .repository.manifest import tool_versions
from .store import Parity, PlanIdentity, PlanManifest, PlanStore, describe_plan
from .store.cache_errors import cache_errors
from .trt.compat import check_knows, is_strongly_typed
from .trt.engine import BuiltPlan, build_plan
from .trt.gpu import Gpu
from .trt.inspect import LayerPrecisions, check_precision
from .trt.options import SMALL_BATCH, BuildOptions

_HEADLINES = ("largest_drift_cosine", "max_drift_cosine", "crops", "compared_with")
"""What a manifest says of a report outside the details."""


def make_plan(
    request: PlanRequest,
    options: BuildOptions,
    identity: PlanIdentity,
    gpu: Gpu,
    reference: Callable[[], ReferenceEmbeddings],
    store: PlanStore,
    report: Tell,
) -> tuple[bytes, PlanManifest]:
    """Build a plan and prove it.

    Args:
        request: What is asked for.
        options: How to build it now: the precision may be a fallback.
        identity: What that makes of it.
        gpu: Where to build and run it.
        reference: What it is compared with, computed when it is needed.
        store: Where it will be stored.
        report: Is told the stage and how much is done.

    Raises:
        CompileError: It cannot be built, or does not run in its precision.
        ParityError: It does not give the source model's embeddings; the message says what was kept of it.
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
    reference()
    built = build_plan(gpu.trt, graph, options, report=report, target_sm=gpu.target_sm, free_mb=gpu.free_mb)
    report("Inspecting the plan", None)
    precisions = gpu.inspect(built.plan)
    for profile in precisions:
        check_precision(profile, options.precision)
    report("Comparing the plan with its source", None)
    accuracy = _compare(options, gpu, built, reference(), store)
    try:
        accuracy.check()
    except ParityError as error:
        report("Looking for the layer that diverges", None)
        kept = keep_refusal(
            store.local.root / "refused" / identity.filename.removesuffix(".plan"),
            converted=graph,
            float32=typed_graph(request.onnx.content, "fp32"),
            settings={"plan": asdict(identity), "accuracy": accuracy.to_record()},
            crops=reference().crops[list(accuracy.worst_crops)],
            max_drift_cosine=request.max_drift_cosine,
        )
        raise ParityError(f"{error} Nothing was stored. {kept}") from error
    return built.plan, _manifest(request, identity, gpu, built, precisions[0], accuracy)


def _compare(
    options: BuildOptions, gpu: Gpu, built: BuiltPlan, reference: ReferenceEmbeddings, store: PlanStore
) -> AccuracyReport:
    # Full batches of each profile, a batch that is not full, and crops alone.
    largest = options.max_batch_size
    sizes = sorted({1, min(SMALL_BATCH, largest), (largest + 1) // 2, largest})
    with store.local.staging() as folder:  # where it is stored if it passes
        path = folder / "candidate.plan"
        with cache_errors(store.local.root, "write"):
            path.write_bytes(built.plan)
        with gpu.load(path) as plan:
            return reference.compare(plan.embed, sizes)


def objection_to(parity: Parity, max_drift_cosine: float) -> str | None:
    """Say what a plan's record has against it by another tolerance; None if nothing."""
    details = parity.details
    try:
        AccuracyReport(
            largest_drift_cosine=parity.largest_drift_cosine,
            max_drift_cosine=max_drift_cosine,
            max_abs_difference=0,
            between_batches=details["between_batches"],
            crops=parity.crops,
            batch_sizes=(),
            controls=details["controls"],
            compared_with=parity.compared_with,
        ).check()
    except KeyError as error:
        return f"Its manifest lacks {error}."
    except ParityError as error:
        return str(error)
    return None


def _manifest(
    request: PlanRequest,
    identity: PlanIdentity,
    gpu: Gpu,
    built: BuiltPlan,
    precisions: LayerPrecisions,
    accuracy: AccuracyReport,
) -> PlanManifest:
    details = accuracy.to_record()
    notes: tuple[str, ...] = ()
    if built.workspace_size_mb != request.options.workspace_size_mb:
        notes += (f"out of memory: built with a workspace of {built.workspace_size_mb} MB",)
    return PlanManifest(
        **describe_plan(built.plan),
        identity=identity,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gpu_name=gpu.name,
        driver_version=gpu.driver_version,
        precisions_used=precisions.layers,
        parity=Parity(**{name: details.pop(name) for name in _HEADLINES}, details=details),
        rebuild_command=request.command(identity.precision),
        tools=tool_versions() | {gpu.trt.__name__: gpu.trt.__version__},
        notes=notes,
        build_seconds=round(built.build_s, 1),
        timing_cache=built.timing_cache,
    )
