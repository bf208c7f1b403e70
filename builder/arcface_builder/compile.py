"""Compile: the ONNX model of a repository in, a checked plan in its TensorRT sibling out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from arcface_client.contract import Crops, Progress, no_progress
from arcface_client.models.manifest import PlanKey, PlanManifest, PlanParity
from arcface_client.models.naming import plan_model
from arcface_client.models.schema import Setting
from arcface_client.triton.limits import DEFAULT_MAX_DRIFT_COSINE

from .check.accuracy import AccuracyReport, ReferenceEmbeddings, reference_for_plans
from .check.refusal import keep_refusal
from .errors import ParityError, PrecisionError, ServedModelError
from .graph.precision import check_gpu_has, fallbacks, typed_graph
from .repository.plans import AddedPlan, add_plan, check_free, published_plans, recorded_plan
from .repository.publish import ModelRepository, OnnxVersion, tool_versions
from .source.load import Source
from .source.reference import source_embedder
from .store import GPU, PlanStore, StoredPlan, describe_plan, this_platform
from .trt.compat import can_be_hardware_compatible, check_knows, is_strongly_typed
from .trt.engine import BuiltPlan, build_plan
from .trt.gpu import Gpu
from .trt.inspect import LayerPrecisions, check_precision
from .trt.options import BUILD_REVISION, SMALL_BATCH, BuildOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to compile, and how.

    Attributes:
        onnx: The model.
        options: The plan.
        fallback: Build the next more exact precision where one is refused.
        max_drift_cosine: Largest drift from the source model that is allowed.
        calibration: Real crops, uint8 [N, 112, 112, 3]: for int8's ranges, and for the accuracy check.
        source: The source model; without it a plan is compared with the ONNX model alone.
        command: Gives the command line that builds the plan of a precision, for the manifest.
    """

    onnx: OnnxVersion
    options: BuildOptions
    fallback: bool = False
    max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE
    calibration: Crops | None = None
    source: Source | None = None
    command: Callable[[str], str] = "arcface-builder compile --precision {}".format


@dataclass(frozen=True)
class Compiled:
    """A plan that is in the repository.

    Attributes:
        added: Where it is.
        manifest: Its manifest there; ``refusals`` says why more compact precisions were not taken.
        from_store: Whether it had been built before.
    """

    added: AddedPlan
    manifest: PlanManifest
    from_store: bool


def compile_plan(
    request: PlanRequest,
    gpu: Gpu,
    store: PlanStore,
    repository: ModelRepository,
    *,
    instances: int | None = None,
    report: Progress = no_progress,
) -> Compiled:
    """Find a plan in the store, or build and check it; then put it into the repository.

    Raises:
        CompileError: The plan cannot be built, or does not run in its precision.
        ParityError: The plan or the ONNX model does not give the source model's embeddings; nothing was
            stored.
        BuilderError: The store or the repository cannot be used.
    """
    onnx = request.onnx
    reference = cache(
        lambda: reference_for_plans(
            onnx.path,
            source_embedder(request.source, onnx.source_sha256),
            request.calibration,
            max_drift_cosine=request.max_drift_cosine,
        )
    )
    there = published_plans(repository, plan_model(onnx.name)).get(onnx.version, {})
    published = next((one for one in there.values() if one.identity.sm == gpu.sm), None)
    refusals: list[str] = []
    precision = request.options.precision
    left = fallbacks(precision, gpu.sm) if request.fallback else []
    while True:
        try:
            if left and published is not None and published.has_refused(precision):
                precision, *left = left  # refused before, as this version's manifest says
                continue
            plan, from_store = _obtain(request, precision, gpu, store, repository, reference, report)
            break
        except ServedModelError:
            raise  # no plan of any precision can pass
        except (ParityError, PrecisionError) as error:
            if not left:
                raise
            refusals.append(f"{precision} was refused: {error}")
            precision, *left = left
            _log.warning("%s Falling back to %s.", error, precision)
    # The refusals belong to this repository: the store may have the plan because it was asked for by itself.
    manifest = replace(plan.manifest, refusals=tuple(refusals) or plan.manifest.refusals)
    added = add_plan(repository, replace(plan, manifest=manifest), version=onnx.version, instances=instances)
    return Compiled(added, manifest, from_store)


def _obtain(
    request: PlanRequest,
    precision: str,
    gpu: Gpu,
    store: PlanStore,
    repository: ModelRepository,
    reference: Callable[[], ReferenceEmbeddings],
    report: Progress,
) -> tuple[StoredPlan, bool]:
    """Find or build a plan of one precision; also tells whether it was found."""
    check_gpu_has(precision, gpu.sm)
    check_knows(gpu.trt.__version__, precision)
    options = replace(request.options, precision=precision)
    report(f"Writing {precision} into the graph", None)
    graph = convert(request, precision, gpu.trt.__version__)
    key = plan_key(
        request, precision, graph, tensorrt_version=gpu.trt.__version__, sm=gpu.sm, gpu_name=gpu.name
    )
    found = recorded_plan(repository, key, request.onnx.version) or store.local.find(key)
    if found is not None:
        _log.info("Found %s", found.path)
        return found, True
    check_free(repository, key, request.onnx.version)  # what follows takes minutes
    with store.local.building(key):
        if (found := store.fetch(key)) is not None:
            return found, True
        return _build(request, options, key, graph, gpu, store, reference, report), False


def convert(request: PlanRequest, precision: str, tensorrt_version: str) -> bytes:
    """Write a precision into the ONNX model, as this TensorRT takes it.

    Raises:
        OptionError: int8 has no calibration crops.
    """
    return typed_graph(
        request.onnx.content,
        precision,
        calibration=request.calibration,
        strongly_typed=is_strongly_typed(tensorrt_version),
    )


def plan_key(
    request: PlanRequest,
    precision: str,
    graph: bytes,
    *,
    tensorrt_version: str,
    sm: str,
    gpu_name: str | None = None,
    platform: str | None = None,
) -> PlanKey:
    """Name a plan by everything that TensorRT reads, and by the tolerance of its check.

    Args:
        request: What is asked for.
        precision: The precision that the graph has.
        graph: The converted graph.
        tensorrt_version: TensorRT's full version.
        sm: The GPU architecture.
        gpu_name: The GPU's model, which counts where TensorRT cannot build for a whole architecture, or was
            told not to.
        platform: Operating system and processor; None is this machine's.
    """
    onnx, options = request.onnx, request.options
    digest = hashlib.sha256(graph)
    if precision == "int8" and request.calibration is not None:
        # The last bits of int8's ranges differ between processors; what they are computed from does not.
        digest = hashlib.sha256(onnx.content + request.calibration.tobytes())
    fits_architecture = options.hardware_compatible and can_be_hardware_compatible(tensorrt_version)
    settings: dict[str, Setting] = {
        "platform": platform or this_platform(),
        "workspace_size_mb": options.workspace_size_mb,
        "hardware_compatible": fits_architecture,
        "small_batch_profile": len(options.profiles) > 1,
        "build_revision": BUILD_REVISION,
    }
    if not fits_architecture and gpu_name is not None:
        settings[GPU] = gpu_name
    smallest, tuned, largest = options.profiles[0]
    return PlanKey(
        model=onnx.name,
        onnx_sha256=onnx.sha256,
        graph_sha256=digest.hexdigest(),
        tensorrt_version=tensorrt_version,
        sm=sm,
        precision=precision,
        min_batch_size=smallest,
        opt_batch_size=tuned,
        max_batch_size=largest,
        settings=settings,
        max_drift_cosine=request.max_drift_cosine,
    )


def _build(
    request: PlanRequest,
    options: BuildOptions,
    key: PlanKey,
    graph: bytes,
    gpu: Gpu,
    store: PlanStore,
    reference: Callable[[], ReferenceEmbeddings],
    report: Progress,
) -> StoredPlan:
    """Build a plan, check it, and store it."""
    trt = gpu.trt
    timings = options.timing_cache or store.local.timing_cache(f"{trt.__name__}-{trt.__version__}", gpu.name)
    with store.local.staging() as folder:  # made before the build, which a cache without room would waste
        report("Comparing the ONNX model with its source", None)
        reference()
        built = build_plan(
            trt,
            graph,
            replace(options, timing_cache=timings),
            report=report,
            target_sm=gpu.target_sm,
            free_mb=gpu.free_mb,
        )
        report("Inspecting the plan", None)
        precisions = gpu.inspect(built.plan)
        for profile in precisions:
            check_precision(profile, options.precision)
        report("Comparing the plan with its source", None)
        path = folder / key.filename
        path.write_bytes(built.plan)
        largest = options.max_batch_size
        with gpu.load(path) as plan:
            # Full batches of each profile, a batch that is not full, and single crops.
            sizes = sorted({1, min(SMALL_BATCH, largest), (largest + 1) // 2, largest})
            accuracy = reference().compare(plan.embed, sizes)
        try:
            accuracy.check()
        except ParityError as error:
            report("Looking for the layer that diverges", None)
            kept = keep_refusal(
                store.local.root / "refused" / path.stem,
                converted=graph,
                float32=typed_graph(request.onnx.content, "fp32"),
                settings={"plan": asdict(key), "accuracy": accuracy.to_record()},
                crops=reference().crops[list(accuracy.worst_crops)],
                max_drift_cosine=request.max_drift_cosine,
                strongly_typed=is_strongly_typed(trt.__version__),
            )
            raise ParityError(f"{error} Nothing was stored. {kept}") from error
        return store.put(path, _manifest(request, key, path, gpu, built, precisions[0], accuracy))


def _manifest(
    request: PlanRequest,
    key: PlanKey,
    plan: Path,
    gpu: Gpu,
    built: BuiltPlan,
    precisions: LayerPrecisions,
    accuracy: AccuracyReport,
) -> PlanManifest:
    notes: tuple[str, ...] = ()
    if built.workspace_size_mb != request.options.workspace_size_mb:
        notes = (f"out of memory: built with a workspace of {built.workspace_size_mb} MB",)
    details = accuracy.to_record()
    headlines = {
        name: details.pop(name)
        for name in ("largest_drift_cosine", "max_drift_cosine", "crops", "compared_with")
    }
    return PlanManifest(
        **describe_plan(plan),
        identity=key,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gpu_name=gpu.name,
        driver_version=gpu.driver_version,
        precisions_used=precisions.layers,
        parity=PlanParity(**headlines, details=details),
        rebuild_command=request.command(key.precision),
        tools=tool_versions() | {gpu.trt.__name__: gpu.trt.__version__},
        notes=notes,
        build_seconds=round(built.build_s, 1),
        timing_cache=built.timing_cache,
    )
