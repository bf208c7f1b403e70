"""A fleet's repository from stored plans, on a machine without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from arcface_client.models.naming import plan_model
from arcface_client.models.plan_manifest import PlanKey

from .compile import ConvertedGraph, PlanRequest, convert, plan_key
from .errors import CompileError
from .repository.plans import AddedPlan, add_plans, published_plans, recorded_plan
from .repository.publish import ModelRepository
from .store.plan_store import PlanStore
from .store.stored import GPU, StoredPlan, release_of, sm_of, this_platform
from .trt.compat import is_strongly_typed

_log = logging.getLogger(__name__)


def assemble(
    request: PlanRequest,
    capabilities: Sequence[str],
    store: PlanStore,
    repository: ModelRepository,
    *,
    tensorrt_version: str | None = None,
    platform: str | None = None,
    instances: int | None = None,
) -> list[AddedPlan]:
    """Put stored plans for several architectures into the repository, all by one TensorRT for one platform.

    Each must have exactly the key that ``compile_plan`` would give it on a GPU of that compute capability
    ("8.6"). TensorRT and platform (``linux-x86_64``) are by default those of the version's other plans;
    without any, the newest TensorRT that has all plans, and this machine's platform.

    Raises:
        CompileError: A plan is missing; nothing was put into the repository.
        BuilderError: The store or the repository cannot be used.
    """
    onnx, precision = request.onnx, request.options.precision
    published = list(published_plans(repository, plan_model(onnx.name)).get(onnx.version, {}).values())
    for manifest in published:  # these are all by one TensorRT for one platform
        tensorrt_version = tensorrt_version or manifest.identity.tensorrt_version
        platform = platform or manifest.identity.platform
    platform = platform or this_platform()
    # The published ones come first: a version never changes, whatever the store has.
    manifests = [entry.manifest for entry, _ in store.entries() if entry.manifest is not None]
    manifests.sort(key=lambda manifest: manifest.created_at, reverse=True)
    known = [one.identity for one in (*published, *manifests) if one.identity.model == onnx.name]
    versions = {key.tensorrt_version for key in known}
    candidates = [tensorrt_version] if tensorrt_version else sorted(versions, key=release_of, reverse=True)
    missing: dict[str, list[str]] = {}
    graphs: dict[bool, ConvertedGraph] = {}
    for version in candidates:
        typed = is_strongly_typed(version)
        if typed not in graphs and not request.calibrates(precision):
            graphs[typed] = convert(request, precision, version)
        graph = graphs.get(typed)
        wanted = {
            sm: plan_key(request, precision, graph, tensorrt_version=version, sm=sm, platform=platform)
            for sm in map(sm_of, capabilities)
        }
        found = {
            sm: next((stored for stored in known if _of_any_gpu(stored) == key), None)
            for sm, key in wanted.items()
        }
        missing[version] = [sm for sm, key in found.items() if key is None]
        if not missing[version]:
            plans = [_take(key, store, repository, onnx.version) for key in found.values() if key]
            return add_plans(
                repository,
                plans,
                version=onnx.version,
                embedding_dim=onnx.manifest.embedding_dim,
                instances=instances,
            )
    best = min(missing, key=lambda version: len(missing[version]), default=None)
    lacking = missing[best] if best else [sm_of(capability) for capability in capabilities]
    raise CompileError(
        f"The {store.places} has no {precision} plan of {onnx.name} version {onnx.version} for "
        f"{', '.join(f'sm{sm}' for sm in lacking)}{f' by TensorRT {best}' if best else ''}, {platform}; run "
        f"`{request.command(precision)}` on such a GPU first."
    )


def _of_any_gpu(key: PlanKey) -> PlanKey:
    """A plan's key without the model of GPU that it was built on, which is not known here."""
    return replace(key, settings={name: value for name, value in key.settings.items() if name != GPU})


def _take(key: PlanKey, store: PlanStore, repository: ModelRepository, version: int) -> StoredPlan:
    if model := key.settings.get(GPU):
        _log.warning("%s is for %s only, not for every GPU of sm%s", key.filename, model, key.sm)
    plan = recorded_plan(repository, key, version) or store.pull(key)
    if plan is None:
        raise CompileError(f"{key.filename} is missing from the {store.places}; compile it again.")
    return plan
