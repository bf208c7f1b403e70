"""Compile: the ONNX model of a repository in, a proven plan in its TensorRT sibling out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache, partial

from arcface_client.bars import Tell
from arcface_client.contract import Crops
from arcface_client.limits import DEFAULT_MAX_DRIFT_COSINE
from arcface_client.names import plan_model

from .errors import BlindGateError, ParityError, PrecisionError, ServedModelError
from .manifest import tool_versions
from .onnx_version import OnnxVersion
from .plans.builder import BuildOptions, BuiltPlan, build_plan
from .plans.divergence import explain_drift
from .plans.gate import Standard, Verdict, judge, objection_to
from .plans.gpu import Gpu
from .plans.identity import plan_identity
from .plans.inspection import LayerPrecisions, check_precision
from .plans.precision import check_gpu_has, fallbacks, typed_graph
from .plans.published import check_free, recorded_plan
from .plans.repository import AddedPlan, add_plan
from .plans.standard import plan_standard
from .plans.toolkit import check_knows, is_strongly_typed
from .plans.watching import watch_plan
from .repository import ModelRepository
from .sources import Source
from .store import Objection, PlanIdentity, PlanManifest, PlanStore, StoredPlan, describe_plan
from .store.cache_errors import translated

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to compile, and how.

    Attributes:
        onnx: The model.
        options: The plan.
        fallback: Build the next more exact precision where one is refused.
        max_drift_cosine: Largest drift that the gate lets pass.
        calibration: Real crops: for int8's ranges, and for the gate.
        source: The source model, for the gate's third point; without it there are two.
        command: The command line that makes the plan of a precision, for the record.
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
    """A plan that was put into the repository.

    Attributes:
        added: Where it is.
        manifest: What it is; this repository's record of it.
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
    report: Tell = lambda stage, done: None,
) -> Compiled:
    """Find a plan in the store, or build and prove it, and put it into the repository.

    Raises:
        CompileError: The plan cannot be built, or does not run in its precision.
        ParityError: It does not give the source model's embeddings, or the ONNX model does not; nothing was
            stored.
        BuilderError: The store or the repository cannot be used.
    """
    version = request.onnx.version
    place = f"{repository.root.resolve()}/{plan_model(request.onnx.name)}/{version}, sm{gpu.sm}"
    # A version takes one plan for an architecture: who would build another waits, and is told before.
    with store.local.lock(hashlib.sha256(place.encode()).hexdigest()[:16], f"A plan for {place}"):
        engine, from_store, refusals = _obtain(request, gpu, store, repository, report)
        for note in engine.manifest.notes if from_store else ():
            _log.info("Of that plan: %s", note)
        # Of this repository, not of the plan: that may be stored where no other precision was asked for.
        manifest = replace(engine.manifest, refusals=refusals or engine.manifest.refusals)
        added = add_plan(repository, replace(engine, manifest=manifest), version=version, instances=instances)
    return Compiled(added, manifest, from_store)


def _obtain(
    request: PlanRequest, gpu: Gpu, store: PlanStore, repository: ModelRepository, report: Tell
) -> tuple[StoredPlan, bool, tuple[str, ...]]:
    """Find or make a plan: it, whether it was found, and why more compact precisions were not taken."""
    refusals: list[str] = []
    standard = cache(partial(plan_standard, request.onnx, request.source, request.calibration))

    def objection(manifest: PlanManifest) -> str | None:  # it may have passed a more lenient gate
        return objection_to(manifest.parity, request.max_drift_cosine)

    precision = request.options.precision
    left = fallbacks(precision, gpu.sm) if request.fallback else []
    while True:
        options = replace(request.options, precision=precision)
        identity = plan_identity(request.onnx, options, gpu, request.calibration)
        try:
            check_gpu_has(precision, gpu.sm)
            with store.building(identity):
                found = _find(identity, request, store, repository, objection)
                if found is not None:
                    return found, True, tuple(refusals)
                # A more exact one may be there because this one was refused before, as it will be now.
                more_exact = fallbacks(precision, gpu.sm) if request.fallback else []
                check_free(repository, identity, request.onnx.version, or_has=more_exact)
                made = _make(request, options, identity, gpu, standard, store, report)
                return store.put(*made, objection), False, tuple(refusals)
        except (ServedModelError, BlindGateError):
            raise  # no other precision would be judged better
        except (ParityError, PrecisionError) as error:
            if not left:
                raise
            refusals.append(f"{precision} was refused: {error}")
            precision, *left = left
            _log.warning("%s Falling back to %s.", error, precision)


def _find(
    identity: PlanIdentity,
    request: PlanRequest,
    store: PlanStore,
    repository: ModelRepository,
    objection: Objection,
) -> StoredPlan | None:
    """The plan that need not be built: the repository's own, which the store gets, or else the store's."""
    there = recorded_plan(repository, identity, request.onnx.version)
    if there is None or objection(there.manifest) is not None:
        return store.fetch(identity, objection)
    _log.info("Hit: %s is in the repository, %s", identity.filename, there.path.parent)
    if store.local.find(there.manifest.identity) is None:
        store.put(there.path.read_bytes(), replace(there.manifest, refusals=()), objection)
    return there


def _make(
    request: PlanRequest,
    options: BuildOptions,
    identity: PlanIdentity,
    gpu: Gpu,
    standard: Callable[[], Standard],
    store: PlanStore,
    report: Tell,
) -> tuple[bytes, PlanManifest]:
    """Build a plan and prove it."""
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
    verdict = _verdict(request, options, gpu, built, standard(), store)
    try:
        verdict.check()
    except ParityError as error:
        report("Looking for the layer that diverges", None)
        content, allowed = request.onnx.content, request.max_drift_cosine
        watch = partial(watch_plan, gpu, content, graph, built, options, standard().crops, allowed, report)
        why = explain_drift(content, graph, standard(), options.precision, allowed, watch)
        raise ParityError(f"{error} Nothing was stored. In {options.precision}, {why}.") from error
    return built.plan, _manifest(request, identity, gpu, built, precisions[0], verdict)


def _verdict(
    request: PlanRequest,
    options: BuildOptions,
    gpu: Gpu,
    built: BuiltPlan,
    standard: Standard,
    store: PlanStore,
) -> Verdict:
    with store.local.staging() as folder:  # where it is stored if it passes
        path = folder / "candidate.plan"
        with translated(store.local.root, "write"):
            path.write_bytes(built.plan)
        with gpu.load(path) as plan:
            return judge(
                plan.embed,
                standard,
                max_batch_size=options.max_batch_size,
                max_drift_cosine=request.max_drift_cosine,
            )


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
