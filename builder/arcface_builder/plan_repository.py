"""The ``{name}_trt`` sibling in a model repository: plans beside plans, one for each architecture.

Version N holds the plans of the ONNX sibling's version N. Triton keeps one map from compute capability to
file name for all versions of a model, and when one version that it is told to serve lacks a file, loading
fails for all of them. So:

* The map holds every architecture that any version has a plan for.
* Served are the newest versions that have a file for every entry of the map. A new version is left out until
  its last plan has come, and the one before serves on: no part of a fleet loses its plans on the way.
* If no version is complete, the newest is served with the architectures that it has.

Adding a plan puts its file into the version before the map names it, so that a server that looks in between
finds nothing amiss. A plan that is there is never changed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arcface_client import manifests

from .disk import flush
from .errors import RepositoryError
from .model_config import CONFIG_FILE, VERSIONS_SERVED, config_text
from .plan_config import plan_config
from .repository import ModelRepository, os_errors, replace_text
from .store import PlanManifest, StoredEngine
from .store.records import read_record

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AddedPlan:
    """A plan in the repository.

    Attributes:
        model: The model that has it.
        version: The version that has it.
        path: Its file.
        served: The versions that Triton is told to serve now.
        is_new: Whether it was not there before.
    """

    model: str
    version: int
    path: Path
    served: tuple[int, ...]
    is_new: bool


def add_plan(
    repository: ModelRepository, engine: StoredEngine, *, version: int, instances: int = 2
) -> AddedPlan:
    """Put a stored plan into a version of ``{name}_trt``.

    Args:
        repository: The model repository.
        engine: A plan from the store, whose bytes were checked.
        version: The ONNX sibling's version that it was built from.
        instances: Copies that Triton runs side by side on each GPU.

    Raises:
        RepositoryError: The version has another plan for that architecture, or cannot be written.
    """
    identity = engine.manifest.identity
    model = f"{identity.model}_trt"
    folder = repository.root / model
    path = folder / str(version) / identity.filename
    record = manifest_path(repository, model, version, identity.sm)
    with repository.staging() as staged, os_errors(repository.root):
        shutil.copyfile(engine.path, staged / identity.filename)
        flush(staged / identity.filename)
        with repository.lock():
            plans = _plans(repository, model)
            there = plans.get(version, {}).get(identity.compute_capability)
            _check_unchanged(there, engine.manifest, path)
            is_new = there is None
            plans.setdefault(version, {})[identity.compute_capability] = engine.manifest
            filenames, served = _serving(plans)
            identities = [plans[number][capability].identity for number in served for capability in filenames]
            config = config_text(
                plan_config(
                    model,
                    filenames=filenames,
                    versions=served,
                    max_batch_size=min(identity.max_batch_size for identity in identities),
                    profiles=min(identity.profiles for identity in identities),
                    instances=instances,
                )
            )
            if is_new:
                replace_text(record, engine.manifest.to_json(), via=staged.parent)
                _place(staged, path, config)
            if not (folder / CONFIG_FILE).is_file() or (folder / CONFIG_FILE).read_text() != config:
                replace_text(folder / CONFIG_FILE, config, via=staged.parent)
            flush(folder)
            flush(repository.root)
    if version not in served:
        missing = sorted(filenames.keys() - plans[version].keys())
        _log.warning(
            "Version %d of %s is not served until it has plans for %s too, as older versions have; "
            "or remove those versions to give these architectures up",
            version,
            model,
            ", ".join(missing),
        )
    return AddedPlan(model, version, path, served, is_new)


def manifest_path(repository: ModelRepository, model: str, version: int, sm: str) -> Path:
    """Where the record of a plan is: in the root, which Triton passes over."""
    return manifests.manifest_path(repository.root, model, version, sm)


_Plans = dict[int, dict[str, PlanManifest]]
"""Manifests by version and compute capability."""


def _plans(repository: ModelRepository, model: str) -> _Plans:
    """The plans of a model, by the manifests whose files are there."""
    found: _Plans = {}
    for version in repository.versions(model):
        for manifest in _manifests(repository, model, version):
            identity = manifest.identity
            if (repository.root / model / str(version) / identity.filename).is_file():
                found.setdefault(version, {})[identity.compute_capability] = manifest
    return found


def _manifests(repository: ModelRepository, model: str, version: int) -> Iterator[PlanManifest]:
    for path in manifests.plan_manifest_paths(repository.root, model, version):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RepositoryError(f"{path} is no JSON ({error}); remove it with its plan.") from error
        yield read_record(PlanManifest, content, str(path))


def _check_unchanged(there: PlanManifest | None, wanted: PlanManifest, path: Path) -> None:
    if there is None or there.plan_sha256 == wanted.plan_sha256:
        return
    differences = ", ".join(wanted.identity.differences(there.identity)) or "another build of the same"
    raise RepositoryError(
        f"{path.parent} has a plan for sm{wanted.identity.sm} already, {there.identity.filename} "
        f"({differences}). A version is never changed: run `arcface-builder build` for the next one, "
        "and compile that."
    )


def _serving(plans: _Plans) -> tuple[dict[str, str], tuple[int, ...]]:
    """Which files to name and which versions to serve; see the module's description."""
    newest_first = sorted(plans, reverse=True)
    filenames: dict[str, str] = {}
    for version in newest_first:
        for capability, manifest in plans[version].items():
            filenames.setdefault(capability, manifest.identity.filename)
    complete = [version for version in newest_first if _names(plans[version]).items() >= filenames.items()]
    if not complete:
        return _names(plans[newest_first[0]]), (newest_first[0],)
    return filenames, tuple(sorted(complete[:VERSIONS_SERVED]))


def _names(plans: dict[str, PlanManifest]) -> dict[str, str]:
    return {capability: manifest.identity.filename for capability, manifest in plans.items()}


def _place(staged: Path, path: Path, config: str) -> None:
    """Move a staged plan to where it belongs, with whatever of the folders is still missing."""
    version, model = path.parent, path.parent.parent
    if version.is_dir():
        (staged / path.name).rename(path)
        flush(version)
        return
    flush(staged)
    if model.is_dir():
        staged.rename(version)
        return
    # A server that polls must not see a model without its configuration or version.
    whole = staged.parent / "model"
    whole.mkdir()
    staged.rename(whole / version.name)
    replace_text(whole / CONFIG_FILE, config, via=staged.parent)
    whole.rename(model)
