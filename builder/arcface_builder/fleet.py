"""A fleet's repository out of stored plans, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import CompileError
from .onnx_version import OnnxVersion
from .plan_repository import AddedPlan, add_plan
from .plans.builder import BuildOptions
from .repository import ModelRepository
from .store import EngineStore, PlanManifest, sm_of


def assemble(
    onnx: OnnxVersion,
    options: BuildOptions,
    capabilities: Sequence[str],
    store: EngineStore,
    repository: ModelRepository,
    *,
    tensorrt_version: str | None = None,
    instances: int | None = None,
) -> list[AddedPlan]:
    """Put stored plans for several architectures into the repository, all by one TensorRT.

    Args:
        onnx: The model that the plans were built from.
        options: Precision and batch sizes that they must have.
        capabilities: Compute capabilities, as "8.6".
        store: Where they are.
        repository: Where they go.
        tensorrt_version: The TensorRT of the server; None takes the newest that has them all.
        instances: Copies that Triton runs side by side on each GPU; see ``add_plan``.

    Raises:
        CompileError: A plan is missing; nothing was put into the repository.
        BuilderError: The store or the repository cannot be used.
    """
    wanted = [sm_of(capability) for capability in capabilities]
    chosen = choose(store.manifests(), onnx, options, wanted, tensorrt_version)
    engines = [(manifest, store.pull(manifest.identity)) for manifest in chosen]
    gone = [manifest.identity.filename for manifest, engine in engines if engine is None]
    if gone:
        raise CompileError(f"The store lost {', '.join(gone)} meanwhile; compile on such a GPU again.")
    return [
        add_plan(repository, engine, version=onnx.version, instances=instances)
        for _, engine in engines
        if engine is not None
    ]


def choose(
    stored: Iterable[PlanManifest],
    onnx: OnnxVersion,
    options: BuildOptions,
    wanted: Sequence[str],
    tensorrt_version: str | None = None,
) -> list[PlanManifest]:
    """Choose a plan for each architecture, the newest of each, all by one TensorRT.

    Raises:
        CompileError: No TensorRT has them all; the message says what the best one lacks.
    """
    by_version: dict[str, dict[str, PlanManifest]] = {}
    for manifest in sorted(stored, key=lambda manifest: manifest.created_at, reverse=True):
        identity = manifest.identity
        fits = (identity.model, identity.onnx_sha256, identity.precision) == (
            onnx.name,
            onnx.sha256,
            options.precision,
        ) and (identity.opt_batch_size, identity.max_batch_size) == (
            options.tuned_for,
            options.max_batch_size,
        )
        if fits and tensorrt_version in (None, identity.tensorrt_version):
            by_version.setdefault(identity.tensorrt_version, {}).setdefault(identity.sm, manifest)
    newest_first = sorted(by_version, key=_numbers, reverse=True)
    for version in newest_first:
        plans = by_version[version]
        if plans.keys() >= set(wanted):
            return [plans[sm] for sm in wanted]
    asked = f"{options.precision} plans of {onnx.name} version {onnx.version}, batch {options.max_batch_size}"
    best = max(newest_first, key=lambda version: len(by_version[version].keys() & set(wanted)), default=None)
    if best is None:
        by = f" by TensorRT {tensorrt_version}" if tensorrt_version else ""
        raise CompileError(f"The store has no {asked}{by}; run `arcface-builder compile` on each GPU first.")
    missing = ", ".join(f"sm{sm}" for sm in wanted if sm not in by_version[best])
    raise CompileError(
        f"The store has {asked}, by TensorRT {best} at best, without {missing}; "
        "run `arcface-builder compile` on such a GPU first."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
