"""Compile: the ONNX model of a repository in, a proven plan in its TensorRT sibling out."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from arcface_client.contract import Crops
from arcface_client.errors import ArcFaceError
from arcface_client.runtimes.base import Embed
from arcface_client.runtimes.onnxruntime import OnnxRuntime

from .errors import BlindGateError, ParityError, PrecisionError
from .graph import session
from .manifest import tool_versions
from .onnx_version import OnnxVersion
from .plan_repository import AddedPlan, add_plan
from .plans.builder import MIN_BATCH_SIZE, BuildOptions, BuiltPlan, build_plan
from .plans.divergence import first_divergence
from .plans.gate import Verdict, another_model, gate_crops, judge
from .plans.gpu import Gpu
from .plans.inspection import LayerPrecisions, check_precision
from .plans.precision import FALLBACKS, typed_graph
from .plans.progress import Report
from .plans.toolkit import is_strongly_typed
from .reference import ReferenceEmbedder
from .repository import ModelRepository
from .sources import Source
from .store import EngineIdentity, EngineStore, Parity, PlanManifest, StoredEngine, describe_plan

_log = logging.getLogger(__name__)

_DIVERGENCE_CROPS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compile, and how.

    Attributes:
        onnx: The model.
        options: The plan.
        fallback: Build the next more exact precision where one is refused.
        allowed_drift_cosine: Largest drift that the gate lets pass.
        calibration: Real crops: for int8's ranges, and for the gate.
        source: The source model, for the gate's third point; without it there are two.
        source_sha256: What the ONNX model's manifest says of it.
        command: The command line that asked, for the record.
    """

    onnx: OnnxVersion
    options: BuildOptions
    fallback: bool = False
    allowed_drift_cosine: float = 0.001
    calibration: Crops | None = None
    source: Source | None = None
    source_sha256: str | None = None
    command: str = "arcface-builder compile"


@dataclass(frozen=True)
class Compiled:
    """A plan that was put into the repository.

    Attributes:
        added: Where it is.
        manifest: What it is.
        from_store: Whether it had been built before.
    """

    added: AddedPlan
    manifest: PlanManifest
    from_store: bool


def compile_plan(
    request: Request,
    gpu: Gpu,
    store: EngineStore,
    repository: ModelRepository,
    *,
    instances: int | None = None,
    report: Report = lambda stage, done: None,
) -> Compiled:
    """Find a plan in the store, or build and prove it, and put it into the repository.

    Raises:
        CompileError: The plan cannot be built, or does not run in its precision.
        ParityError: It does not give the source model's embeddings; nothing was stored.
        BuilderError: The store or the repository cannot be used.
    """
    refusals: list[str] = []
    precision = request.options.precision
    while True:
        options = replace(request.options, precision=precision)
        identity = _identity(request, options, gpu)
        try:
            with store.building(identity):
                engine = store.fetch(identity)
                from_store = engine is not None
                if engine is None:
                    engine = _make(request, options, identity, gpu, store, tuple(refusals), report)
                else:
                    _check_drift(engine.manifest, request.allowed_drift_cosine)
            break
        except BlindGateError:
            raise  # no other precision would be judged better
        except (ParityError, PrecisionError) as error:
            if not request.fallback or precision not in FALLBACKS:
                raise
            refusals.append(f"{precision} was refused: {error}")
            precision = FALLBACKS[precision]
            _log.warning("%s Falling back to %s.", error, precision)
    added = add_plan(repository, engine, version=request.onnx.version, instances=instances)
    return Compiled(added, engine.manifest, from_store)


def _check_drift(manifest: PlanManifest, allowed: float) -> None:
    """Refuse a stored plan that passed a more lenient gate than this one."""
    drift = manifest.parity.max_drift_cosine
    if not drift <= allowed:
        raise ParityError(
            f"The stored {manifest.identity.filename} drifts by {drift:.2g} from its source model; "
            f"expected at most {allowed:g} (validation.max_drift_cosine)."
        )


def _identity(request: Request, options: BuildOptions, gpu: Gpu) -> EngineIdentity:
    settings = options.settings()
    if options.precision == "int8" and request.calibration is not None:
        settings["calibration"] = hashlib.sha256(request.calibration.tobytes()).hexdigest()[:12]
    return EngineIdentity(
        model=request.onnx.name,
        onnx_sha256=request.onnx.sha256,
        tensorrt_version=gpu.trt.__version__,
        sm=gpu.sm,
        precision=options.precision,
        min_batch_size=MIN_BATCH_SIZE,
        opt_batch_size=options.tuned_for,
        max_batch_size=options.max_batch_size,
        settings=settings,
    )


def _make(
    request: Request,
    options: BuildOptions,
    identity: EngineIdentity,
    gpu: Gpu,
    store: EngineStore,
    notes: tuple[str, ...],
    report: Report,
) -> StoredEngine:
    """Build a plan, prove it, and store it."""

    def typed(precision: str) -> bytes:
        return typed_graph(
            request.onnx.content,
            precision,
            calibration=request.calibration,
            strongly_typed=is_strongly_typed(gpu.trt),
        )

    report(f"Writing {options.precision} into the graph", None)
    graph = typed(options.precision)
    built = build_plan(gpu.trt, graph, options, report=report, target_sm=gpu.target_sm, free_mb=gpu.free_mb)
    report("Inspecting the plan", None)
    precisions = gpu.inspect(built.plan)
    for profile in precisions:
        check_precision(profile, options.precision)
    report("Comparing the plan with its source", None)
    verdict = _verdict(request, options, gpu, built)
    try:
        verdict.check()
    except BlindGateError:
        raise
    except ParityError as error:
        crops = gate_crops(request.calibration)[:_DIVERGENCE_CROPS]
        divergence = first_divergence(typed("fp32"), graph, crops, options.precision)
        where = str(divergence or "its graph is sound in ONNX Runtime, so TensorRT's build is at fault")
        raise ParityError(f"{error} In {options.precision}, {where}.") from error
    return store.put(built.plan, _manifest(request, identity, gpu, built, precisions[0], verdict, notes))


def _verdict(request: Request, options: BuildOptions, gpu: Gpu, built: BuiltPlan) -> Verdict:
    crops = gate_crops(request.calibration)
    with closing(OnnxRuntime(request.onnx.path)) as served, tempfile.TemporaryDirectory() as folder:
        another = session(another_model(request.onnx.content))
        source, source_name = _source(request, served.embed)
        path = Path(folder) / "candidate.plan"
        path.write_bytes(built.plan)
        with gpu.load(path) as plan:
            return judge(
                source,
                served.embed,
                plan.embed,
                crops,
                max_batch_size=options.max_batch_size,
                another=lambda batch: another.run(None, {another.get_inputs()[0].name: batch})[0],
                allowed_drift_cosine=request.allowed_drift_cosine,
                source_name=source_name,
            )


def _source(request: Request, served: Embed) -> tuple[Embed, str]:
    """The first of the three points: the source model, or the served one where the source is not at hand."""
    if request.source is not None:
        try:
            source = request.source.load()
        except (ArcFaceError, OSError) as error:
            _log.warning("The source model is not at hand (%s); comparing with the ONNX model alone.", error)
        else:
            if source.origin.sha256 == request.source_sha256:
                reference = ReferenceEmbedder(source)
                return reference.embed, reference.runs
            _log.warning(
                "%s is not what the ONNX model was built from; comparing with the ONNX model alone.",
                source.origin.name,
            )
    return served, "served ONNX model"


def _manifest(
    request: Request,
    identity: EngineIdentity,
    gpu: Gpu,
    built: BuiltPlan,
    precisions: LayerPrecisions,
    verdict: Verdict,
    notes: tuple[str, ...],
) -> PlanManifest:
    details = asdict(verdict) | {"batch_sizes": list(verdict.batch_sizes)}  # as JSON has it
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
        parity=Parity(
            max_drift_cosine=details.pop("max_drift_cosine"),
            allowed_drift_cosine=details.pop("allowed_drift_cosine"),
            crops=details.pop("crops"),
            details=details,
        ),
        build_command=request.command,
        tools=tool_versions() | {gpu.trt.__name__: gpu.trt.__version__},
        notes=notes,
    )
