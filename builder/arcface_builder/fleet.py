"""A fleet's repository out of stored plans, on a machine without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from arcface_client.models.naming import plan_model
from arcface_client.triton.limits import DEFAULT_MAX_DRIFT_COSINE

from .errors import CompileError
from .making import objection_to
from .repository.publish import ModelRepository
from .repository.publish_plan import AddedPlan, add_plans
from .repository.published import published_plans, recorded_plan
from .source.onnx_version import OnnxVersion
from .store import Objection, PlanIdentity, PlanManifest, PlanStore, StoredPlan, sm_of
from .store.identity import CALIBRATION, GPU_MODEL, PLATFORM, Setting, release_of
from .trt.options import MIN_BATCH_SIZE, BuildOptions
from .trt.plan_key import this_platform

_log = logging.getLogger(__name__)

_Kind = tuple[str, Setting, Setting]
"""What the plans of a fleet have in common: TensorRT's version, platform, and int8's calibration."""

_PassedOver = tuple[str, int, str]
"""A plan that is not what is wanted: its SM, how much is against it, and what."""


def assemble(
    onnx: OnnxVersion,
    options: BuildOptions,
    capabilities: Sequence[str],
    store: PlanStore,
    repository: ModelRepository,
    *,
    max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE,
    tensorrt_version: str | None = None,
    platform: str | None = None,
    instances: int | None = None,
) -> list[AddedPlan]:
    """Put stored plans for several architectures into the repository, all by one TensorRT for one platform.

    Args:
        onnx: The model that the plans were built from.
        options: Precision, batch sizes and settings that they must have.
        capabilities: Compute capabilities, as "8.6".
        store: Where they are.
        repository: Where they go.
        max_drift_cosine: The gate's tolerance, which they must pass whatever they passed then.
        tensorrt_version: The TensorRT of the server; None takes that of the version's other plans, or the
            newest that has them all.
        platform: The server's, as ``linux-x86_64``; None takes that of the version's other plans, or this
            machine's.
        instances: Copies that Triton runs side by side on each GPU; see ``add_plan``.

    Raises:
        CompileError: A plan is missing; nothing was put into the repository.
        BuilderError: The store or the repository cannot be used.
    """
    wanted = [sm_of(capability) for capability in capabilities]
    there = published_plans(repository, plan_model(onnx.name)).get(onnx.version, {})
    like: dict[str, Setting] = {PLATFORM: platform or this_platform()}
    for identity in (manifest.identity for manifest in there.values()):  # which are all alike
        tensorrt_version = tensorrt_version or identity.tensorrt_version
        like[PLATFORM] = platform or identity.platform
        if identity.precision == options.precision == "int8":
            like[CALIBRATION] = identity.settings.get(CALIBRATION)
    # What is published and fits stays, whatever newer ones the store has.
    objections = {
        manifest.identity.sm: _objections(manifest, onnx, options, tensorrt_version, like, max_drift_cosine)
        for manifest in there.values()
    }
    chosen = {
        manifest.identity.sm: manifest for manifest in there.values() if not objections[manifest.identity.sm]
    }
    kept = frozenset(chosen)
    if missing := [sm for sm in wanted if sm not in kept]:
        try:
            found = choose(
                store.manifests(),
                onnx,
                options,
                missing,
                tensorrt_version,
                like,
                max_drift_cosine=max_drift_cosine,
            )
        except CompileError as error:
            more = f" Looked in the {store.places}."
            for sm in missing:
                if why := objections.get(sm):
                    more += f" Version {onnx.version}'s own plan for sm{sm} does not do: {', '.join(why)}."
            for kind in {manifest.identity.kind for manifest in there.values()}:
                more += (
                    f" Version {onnx.version} has plans by {kind} already: for others, build the next one."
                )
            raise CompileError(f"{error}{more}") from error
        chosen |= {manifest.identity.sm: manifest for manifest in found}
    plans: list[StoredPlan] = []
    for identity in (chosen[sm].identity for sm in wanted):
        if model := identity.settings.get(GPU_MODEL):
            _log.warning("%s is for %s alone, not for all of sm%s", identity.filename, model, identity.sm)
        if identity.sm in kept:
            plan = recorded_plan(repository, identity, onnx.version)
        else:
            plan = store.pull(identity, _other_than(chosen[identity.sm], max_drift_cosine))
        if plan is None:
            raise CompileError(
                f"{identity.filename} is no longer as it was listed in the {store.places}; compile on such a "
                "GPU again."
            )
        plans.append(plan)
    return add_plans(repository, plans, version=onnx.version, instances=instances)


def choose(
    stored: Iterable[PlanManifest],
    onnx: OnnxVersion,
    options: BuildOptions,
    wanted: Sequence[str],
    tensorrt_version: str | None = None,
    like: Mapping[str, Setting] | None = None,
    *,
    max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE,
) -> list[PlanManifest]:
    """Choose a plan for each architecture, the newest of each.

    All are by one TensorRT, for one platform, and of one calibration; ``like`` has settings that they must
    have besides those of the options.

    Raises:
        CompileError: No TensorRT has them all; the message says what the best one lacks.
    """
    sets: dict[_Kind, dict[str, PlanManifest]] = {}
    passed_over: list[_PassedOver] = []
    for manifest in sorted(stored, key=lambda manifest: manifest.created_at, reverse=True):
        identity = manifest.identity
        if identity.model != onnx.name:
            continue
        if objections := _objections(manifest, onnx, options, tensorrt_version, like or {}, max_drift_cosine):
            passed_over.append(
                (identity.sm, len(objections), f"{identity.filename}: {', '.join(objections)}")
            )
            continue
        kind = (
            identity.tensorrt_version,
            identity.settings.get(PLATFORM),
            identity.settings.get(CALIBRATION),
        )
        sets.setdefault(kind, {}).setdefault(identity.sm, manifest)
    newest_first = sorted(sets, key=lambda kind: release_of(kind[0]), reverse=True)
    for kind in newest_first:
        plans = sets[kind]
        if plans.keys() >= set(wanted):
            return [plans[sm] for sm in wanted]
    asked = f"{options.precision} plans of {onnx.name} version {onnx.version}, batch {options.max_batch_size}"
    best = max(newest_first, key=lambda kind: len(sets[kind].keys() & set(wanted)), default=None)
    missing = [sm for sm in wanted if best is None or sm not in sets[best]]
    if best is not None:
        for plans in sets.values():
            passed_over += [_of_another_kind(plans[sm].identity, best) for sm in missing if sm in plans]
    nearest = _nearest(passed_over, missing)
    if best is None:
        by = f" by TensorRT {tensorrt_version}" if tensorrt_version else ""
        by += f" for {like[PLATFORM]}" if like and PLATFORM in like else ""
        raise CompileError(
            f"The store has no {asked}{by}{nearest}; run `arcface-builder compile` on each GPU first."
        )
    calibrated = " with one calibration" if best[2] is not None else ""
    raise CompileError(
        f"The store has {asked}, by TensorRT {best[0]} for {best[1]}{calibrated} at best, without "
        f"{', '.join(f'sm{sm}' for sm in missing)}{nearest}; "
        "run `arcface-builder compile` on such a GPU first."
    )


def _other_than(chosen: PlanManifest, max_drift_cosine: float) -> Objection:
    """What is against a plan that has come in the place of the one that was chosen."""

    def objection(found: PlanManifest) -> str | None:
        if found.plan_sha256 != chosen.plan_sha256:
            return "It is another one than was listed."
        return objection_to(found.parity, max_drift_cosine)  # the same bytes may have been judged otherwise

    return objection


def _of_another_kind(identity: PlanIdentity, best: _Kind) -> _PassedOver:
    """A plan that would do, but not beside the others that were chosen."""
    tensorrt_version, platform, calibration = best
    settings = {**identity.settings, PLATFORM: platform, CALIBRATION: calibration}
    beside_them = replace(identity, tensorrt_version=tensorrt_version, settings=settings)
    differences = beside_them.differences(identity)
    return identity.sm, len(differences), f"{identity.filename}: {', '.join(differences)}"


def _objections(
    manifest: PlanManifest,
    onnx: OnnxVersion,
    options: BuildOptions,
    tensorrt_version: str | None,
    like: Mapping[str, Setting],
    max_drift_cosine: float,
) -> list[str]:
    """What is against a plan of the model: all that ``compile`` would build or judge otherwise."""
    identity = manifest.identity
    asked_for = replace(
        identity,
        onnx_sha256=onnx.sha256,
        tensorrt_version=tensorrt_version or identity.tensorrt_version,
        precision=options.precision,
        min_batch_size=MIN_BATCH_SIZE,
        opt_batch_size=options.tuned_for,
        max_batch_size=options.max_batch_size,
        settings={**identity.settings, **options.settings(), **like},
    )
    if differences := asked_for.differences(identity):
        return differences
    objection = objection_to(manifest.parity, max_drift_cosine)
    return [objection.rstrip(".")] if objection else []


def _nearest(passed_over: Iterable[_PassedOver], missing: Sequence[str]) -> str:
    """Say what keeps the most similar plan for a missing architecture from being taken."""
    fitting = [(count, text) for sm, count, text in passed_over if sm in missing]
    return f" (not taken: {min(fitting)[1]})" if fitting else ""
