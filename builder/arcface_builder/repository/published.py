"""The plans that a model repository has, by what was recorded of them and what their files are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from arcface_client.models import manifest as manifests
from arcface_client.models.naming import plan_model

from ..errors import PlanDamagedError, RepositoryError
from ..store import PlanKey, PlanManifest, StoredPlan, check_plan, describe_plan
from .publish import ModelRepository

Plans = dict[int, dict[str, PlanManifest]]
"""Manifests by version and compute capability."""


def published_plans(repository: ModelRepository, model: str) -> Plans:
    """The plans of a model, by the manifests whose files are there.

    Raises:
        ManifestError: A manifest is damaged.
    """
    found: Plans = {}
    for version in repository.versions(model):
        for manifest in _manifests(repository, model, version):
            identity = manifest.identity
            if (repository.root / model / str(version) / identity.filename).is_file():
                found.setdefault(version, {})[identity.compute_capability] = manifest
    return found


def _manifests(repository: ModelRepository, model: str, version: int) -> Iterator[PlanManifest]:
    for path in manifests.plan_manifest_paths(repository.root, model, version):
        yield PlanManifest.read(path)


def manifest_path(repository: ModelRepository, model: str, version: int, sm: str) -> Path:
    """Where the record of a plan is: in the root, which Triton passes over."""
    return manifests.manifest_path(repository.root, model, version, sm)


def plan_files(repository: ModelRepository, identity: PlanKey, version: int) -> list[Path]:
    """What a version has for an architecture, whatever it is; one file at most, unless by hand."""
    folder = repository.root / plan_model(identity.model) / str(version)
    return sorted(folder.glob(f"*-sm{identity.sm}.plan"))


def recorded_plan(repository: ModelRepository, identity: PlanKey, version: int) -> StoredPlan | None:
    """The plan with this key that a version has; None if it has none.

    Raises:
        ManifestError: The record is damaged.
        PlanDamagedError: The plan is not as it was recorded.
    """
    model = plan_model(identity.model)
    manifest = published_plans(repository, model).get(version, {}).get(identity.compute_capability)
    if manifest is None or manifest.identity != identity:
        return None
    path = repository.root / model / str(version) / identity.filename
    try:
        check_plan(path, manifest, where=str(path))
    except PlanDamagedError as error:
        raise PlanDamagedError(f"{error} Remove it, and compile again.") from error
    return StoredPlan(path, manifest)


def check_alike(plans: Sequence[PlanKey], folder: Path) -> None:
    """Refuse plans of one version that no server can load together."""
    for one, other in pairwise(plans):
        if (one.tensorrt_version, one.platform) != (other.tensorrt_version, other.platform):
            raise RepositoryError(
                f"In {folder}, {one.filename} would be by {one.kind}, {other.filename} by {other.kind}; no "
                "server loads both. For another TensorRT run `arcface-builder build` for the next version, "
                "and compile that for every architecture; another platform needs a repository of its own."
            )


def taken(path: Path, why: str) -> RepositoryError:
    """The error for an architecture that has another plan already."""
    sm = path.stem.rpartition("-sm")[2]
    return RepositoryError(
        f"{path.parent} has a plan for sm{sm} already, {path.name} ({why}). A version is never changed: run "
        "`arcface-builder build` for the next one, and compile that."
    )


def check_free(repository: ModelRepository, identity: PlanKey, version: int) -> None:
    """Refuse, before minutes of building, a plan that could not be put into a version afterwards.

    Raises:
        RepositoryError: The repository cannot be written, or the version has another plan for the
            architecture, or plans that no server can load beside this one.
    """
    if repository.root.exists() and not os.access(repository.root, os.W_OK):
        raise RepositoryError(
            f"Cannot write the model repository {repository.root}; make it writable, or name another "
            "(--repository). Nothing was built."
        )
    model = plan_model(identity.model)
    for path in plan_files(repository, identity, version):
        raise taken(path, "and this one would have to be built")
    there = published_plans(repository, model).get(version, {})
    identities = [manifest.identity for manifest in there.values()]
    check_alike([*identities, identity], repository.root / model / str(version))


def check_unchanged(recorded: PlanManifest | None, wanted: PlanManifest, folder: Path) -> None:
    """Refuse another plan than the one that is there, which the files tell: a record may be gone, or lie."""
    for there in folder.glob(f"*-sm{wanted.identity.sm}.plan"):
        is_it = there.name == wanted.identity.filename
        if not (is_it and describe_plan(there)["plan_sha256"] == wanted.plan_sha256):
            differences = recorded and ", ".join(wanted.identity.differences(recorded.identity))
            raise taken(there, differences or "of other bytes")
