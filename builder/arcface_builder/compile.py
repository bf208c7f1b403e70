"""Compile: the ONNX model of a repository in, a proven plan in its TensorRT sibling out."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from arcface_client.cli.bars import Tell
from arcface_client.models.naming import plan_model

from .check.accuracy import reference_for_plans
from .errors import ParityError, PrecisionError, ServedModelError
from .graph.precision import check_gpu_has, fallbacks
from .making import make_plan, objection_to
from .plan_request import PlanRequest
from .repository.publish import ModelRepository
from .repository.publish_plan import AddedPlan, add_plan
from .repository.published import check_free, recorded_plan
from .source.reference import source_embedder
from .store import Objection, PlanIdentity, PlanManifest, PlanStore, StoredPlan
from .store.locks import building_lock
from .store.plan_manifest import refusal_of
from .trt.gpu import Gpu
from .trt.plan_key import plan_identity

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """A plan that was put into the repository.

    Attributes:
        added: Where it is.
        manifest: What it is; this repository's record of it.
        from_store: Whether it had been built before.
        refusals: Why more compact precisions were not taken now; the record keeps those of before, too.
    """

    added: AddedPlan
    manifest: PlanManifest
    from_store: bool
    refusals: tuple[str, ...] = ()


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
    lock = hashlib.sha256(place.encode()).hexdigest()[:16]
    with building_lock(store.local.root, lock, f"A plan for {place}"):
        obtained = _obtain(request, gpu, store, repository, report)
        plan = obtained.plan
        for note in plan.manifest.notes if obtained.from_store else ():
            _log.info("Of that plan: %s", note)
        # Of this repository, not of the plan: that may be stored where no other precision was asked for.
        manifest = replace(plan.manifest, refusals=obtained.refusals or plan.manifest.refusals)
        added = add_plan(repository, replace(plan, manifest=manifest), version=version, instances=instances)
    return Compiled(added, manifest, obtained.from_store, obtained.refusals)


class _Obtained(NamedTuple):
    plan: StoredPlan
    from_store: bool
    refusals: tuple[str, ...]


def _obtain(
    request: PlanRequest, gpu: Gpu, store: PlanStore, repository: ModelRepository, report: Tell
) -> _Obtained:
    """Find or make a plan, of a more exact precision if need be."""
    refusals: list[str] = []
    reference = cache(
        lambda: reference_for_plans(
            request.onnx.path,
            source_embedder(request.source, request.onnx.source_sha256),
            request.calibration,
            max_drift_cosine=request.max_drift_cosine,
        )
    )

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
                    return _Obtained(found, True, tuple(refusals))
                # A more exact one may be there because this one was refused before, as it will be now.
                more_exact = fallbacks(precision, gpu.sm) if request.fallback else []
                check_free(repository, identity, request.onnx.version, or_has=more_exact)
                made = make_plan(request, options, identity, gpu, reference, store, report)
                return _Obtained(store.put(*made, objection), False, tuple(refusals))
        except ServedModelError:
            raise  # no plan of any precision can pass
        except (ParityError, PrecisionError) as error:
            if not left:
                raise
            refusals.append(refusal_of(precision, str(error)))
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
