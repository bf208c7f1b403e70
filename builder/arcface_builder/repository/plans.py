"""The plans of a repository's ``{name}_trt`` models: which there are, how one is added, what is served.

Version N holds the plans of the ONNX sibling's version N, one for each GPU architecture. A plan is renamed
into its version before the configuration names it, and is never changed.

Triton keeps one map from compute capability to file name for all versions of a model. When a version that it
is told to serve lacks one of the files, loading fails for all of them. Therefore:

* The map is that of the newest version with a plan for every architecture in the present map. A new version
  is left out until its last plan has come, and the one before serves on.
* That version is served, and the newest one before it that has files of all these names.
* An architecture leaves the map, with a warning, only when its plans are gone from the disk.
* All plans served are by one TensorRT and for one platform, since no server loads others.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from arcface_client.contract import EMBEDDING_DIM
from arcface_client.models.files import sha256_of
from arcface_client.models.manifest import manifest_path
from arcface_client.models.naming import plan_model
from arcface_client.models.plan_manifest import PlanKey, PlanManifest, plan_manifest_paths

from ..errors import PlanDamagedError, RepositoryError
from ..store.stored import StoredPlan, check_plan, release_of
from .config import (
    CONFIG_FILE,
    VERSIONS_SERVED,
    config_changes,
    config_text,
    plan_config,
    read_config,
)
from .publish import ModelRepository

_log = logging.getLogger(__name__)

Plans = dict[int, dict[str, PlanManifest]]
"""Manifests by version and compute capability."""


@dataclass(frozen=True)
class AddedPlan:
    """A plan in the repository, and the versions that Triton is told to serve now.

    It is new if the repository did not have it before, and from the store if it had been built before.
    """

    model: str
    version: int
    path: Path
    served: tuple[int, ...]
    is_new: bool
    manifest: PlanManifest
    from_store: bool = True


def published_plans(repository: ModelRepository, model: str) -> Plans:
    """The plans of a model: the manifests whose files exist.

    Raises:
        ManifestError: A manifest is damaged.
    """
    found: Plans = {}
    for version in repository.versions(model):
        for path in plan_manifest_paths(repository.root, model, version):
            manifest = PlanManifest.read(path)
            if (repository.root / model / str(version) / manifest.identity.filename).is_file():
                found.setdefault(version, {})[manifest.identity.compute_capability] = manifest
    return found


def recorded_plan(repository: ModelRepository, key: PlanKey, version: int) -> StoredPlan | None:
    """The plan with this key that a version has; None if it has none.

    Raises:
        ManifestError: A manifest is damaged.
        PlanDamagedError: The plan differs from its manifest.
    """
    model = plan_model(key.model)
    manifest = published_plans(repository, model).get(version, {}).get(key.compute_capability)
    if manifest is None or manifest.identity != key:
        return None
    path = repository.root / model / str(version) / key.filename
    try:
        check_plan(path, manifest, where=str(path))
    except PlanDamagedError as error:
        raise PlanDamagedError(f"{error} Remove it, and compile again.") from error
    return StoredPlan(path, manifest)


def check_free(repository: ModelRepository, key: PlanKey, version: int) -> None:
    """Refuse, before minutes of building, a plan that could not be added to a version afterwards.

    Raises:
        RepositoryError: The repository cannot be written, or the version has another plan for the
            architecture, or plans that no server can load beside this one.
    """
    if repository.root.exists() and not os.access(repository.root, os.W_OK):
        raise RepositoryError(
            f"Cannot write the model repository {repository.root}; make it writable, or name another "
            "(--repository). Nothing was built."
        )
    model = plan_model(key.model)
    folder = repository.root / model / str(version)
    for path in _files_for(folder, key):
        raise _taken(path, "and this one would have to be built")
    there = published_plans(repository, model).get(version, {})
    _check_alike([*(manifest.identity for manifest in there.values()), key], folder)


def add_plans(
    repository: ModelRepository,
    stored: Sequence[StoredPlan],
    *,
    version: int,
    embedding_dim: int = EMBEDDING_DIM,
    instances: int | None = None,
) -> list[AddedPlan]:
    """Add stored plans of one model to a version of ``{name}_trt``: all of them, or none.

    Each is for another architecture, and all are built from that version of the ONNX sibling. ``instances``
    is how many copies Triton runs side by side on each GPU; None keeps the present number, or is 2.

    Raises:
        RepositoryError: The version has another plan for an architecture, or plans by another TensorRT or for
            another platform, or cannot be written.
        PlanDamagedError: A plan differs from its manifest.
        ManifestError: The manifest of a published plan is damaged.
    """
    wanted = {plan.manifest.identity.compute_capability: plan.manifest for plan in stored}
    model = plan_model(stored[0].manifest.identity.model)
    folder = repository.root / model / str(version)
    with repository.staging() as staged:
        for plan in stored:
            _copy(plan, staged)
        with repository.lock():
            plans = published_plans(repository, model)
            there = plans.setdefault(version, {})
            _check_same(wanted.values(), folder)
            _check_alike([manifest.identity for manifest in (*there.values(), *wanted.values())], folder)
            manifests = {
                manifest_path(repository.root, model, version, manifest.identity.sm): (
                    manifest.identity.filename,
                    manifest.to_json(),
                )
                for capability, manifest in wanted.items()
                if there.get(capability) != manifest
            }
            there.update(wanted)
            old = read_config(folder.parent / CONFIG_FILE)
            before = set(old.cc_model_filenames) if old else set()
            filenames, served = choose_served(plans, before)
            keys = [plans[number][capability].identity for number in served for capability in filenames]
            config = plan_config(
                model,
                filenames=filenames,
                versions=served,
                max_batch_size=min(key.max_batch_size for key in keys),
                profiles=min(key.profiles for key in keys),
                embedding_dim=embedding_dim,
                instances=instances,
                old=old,
            )
            added = [
                AddedPlan(
                    model=model,
                    version=version,
                    path=folder / manifest.identity.filename,
                    served=served,
                    is_new=not (folder / manifest.identity.filename).is_file(),
                    manifest=manifest,
                )
                for manifest in wanted.values()
            ]
            changed = {} if config == old else {CONFIG_FILE: config_text(config)}
            repository.put(staged, folder, manifests=manifests, configs=changed)
    _report_changes(model, old, config, before - filenames.keys())
    for capability in wanted:
        if version not in served or capability not in filenames:
            why = _why_not_served(plans, filenames, version, max(served))
            _log.warning(
                "The plan of version %d of %s for %s is not served: %s", version, model, capability, why
            )
    return added


def choose_served(plans: Plans, before: Set[str]) -> tuple[dict[str, str], tuple[int, ...]]:
    """The file names of the map and the versions to serve, where the map had these capabilities ``before``.

    See the module's description.
    """
    leading = max(plans, key=lambda version: (len(before & plans[version].keys()), version))
    filenames, kinds = _filenames(plans[leading]), _kinds(plans[leading])
    complete = [
        version
        for version, there in sorted(plans.items())
        if _filenames(there).items() >= filenames.items() and _kinds(there) == kinds
    ]
    return filenames, tuple(complete[-VERSIONS_SERVED:])


def _copy(plan: StoredPlan, staged: Path) -> None:
    """Copy a plan into the staging folder, and check the copy: it may have changed since it was found."""
    copy = staged / plan.manifest.identity.filename
    try:
        shutil.copyfile(plan.path, copy)
    except FileNotFoundError as error:
        raise PlanDamagedError(f"{plan.path} was removed meanwhile; compile again.") from error
    check_plan(copy, plan.manifest, where=str(plan.path))


def _report_changes(model: str, old: Any | None, config: Any, lost: Set[str]) -> None:
    if old is not None and config != old:
        changes = config_changes(config_text(old), config_text(config))
        _log.info("%s of all versions of %s changes: %s", CONFIG_FILE, model, changes)
    if lost:
        _log.warning(
            "%s no longer has a plan for %s: no version has plans for all architectures served until now",
            model,
            ", ".join(sorted(lost)),
        )


def _why_not_served(plans: Plans, filenames: dict[str, str], version: int, leading: int) -> str:
    if version < leading:
        return f"version {leading} is; compile that"
    missing = sorted(filenames.keys() - plans[version].keys(), key=release_of)
    complete = [str(number) for number, there in sorted(plans.items()) if there.keys() >= {*missing}]
    return (
        f"version {leading} serves on until version {version} has plans for {', '.join(missing)} too; "
        f"or remove version {', '.join(complete)} to give these architectures up"
    )


def _files_for(folder: Path, key: PlanKey) -> list[Path]:
    return sorted(folder.glob(f"*-sm{key.sm}.plan"))


def _check_same(wanted: Iterable[PlanManifest], folder: Path) -> None:
    """Refuse another plan than the one there. The file decides: its manifest may be missing or wrong."""
    for manifest in wanted:
        for there in _files_for(folder, manifest.identity):
            if there.name != manifest.identity.filename:
                raise _taken(there, f"not {manifest.identity.filename}")
            if sha256_of(there) != manifest.plan_sha256:
                raise _taken(there, "it has other settings or other bytes")


def _taken(path: Path, why: str) -> RepositoryError:
    sm = path.stem.rpartition("-sm")[2]
    return RepositoryError(
        f"{path.parent} has a plan for sm{sm} already, {path.name} ({why}). A version is never changed: run "
        "`arcface-builder build` for the next one, and compile that."
    )


def _check_alike(keys: Iterable[PlanKey], folder: Path) -> None:
    """Refuse plans of one version that no server can load together."""
    for one, other in pairwise(keys):
        if (one.tensorrt_version, one.platform) != (other.tensorrt_version, other.platform):
            raise RepositoryError(
                f"In {folder}, {one.filename} would be by {_kind(one)}, {other.filename} by {_kind(other)}; "
                "no server loads both. For another TensorRT run `arcface-builder build` for the next "
                "version, and compile that for every architecture. Another platform needs its own repository."
            )


def _kind(key: PlanKey) -> str:
    """What a server needs to load a plan, for messages."""
    return f"TensorRT {key.tensorrt_version} for {key.platform}"


def _filenames(plans: dict[str, PlanManifest]) -> dict[str, str]:
    return {capability: manifest.identity.filename for capability, manifest in plans.items()}


def _kinds(plans: dict[str, PlanManifest]) -> set[tuple[str, str]]:
    keys = [manifest.identity for manifest in plans.values()]
    return {(key.tensorrt_version, key.platform) for key in keys}
