"""The ``{name}_trt`` sibling in a model repository: plans beside plans, one for each architecture.

Version N holds the plans of the ONNX sibling's version N. Triton keeps one map from compute capability to
file name for all versions of a model, and when one version that it is told to serve lacks a file, loading
fails for all of them. So:

* The map is that of the newest version that has a plan for every architecture in the map until now. A new
  version is left out until its last plan has come, and the one before serves on: no part of a fleet loses its
  plans on the way.
* Served are that version and the newest before it that has files of all these names, too.
* Only plans that are gone from the disk give an architecture up, with a warning.

Adding a plan puts its file into the version before the map names it, so that a server that looks in between
finds nothing amiss. A plan that is there is never changed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_client import manifests
from arcface_client.names import plan_model

from ..disk import flush
from ..errors import RepositoryError
from ..model_config import CONFIG_FILE, VERSIONS_SERVED, config_changes, config_text
from ..repository import ModelRepository, os_errors, replace_text
from ..store import PlanManifest, StoredPlan, describe_plan
from ..store.plan_manifest import parse_manifest
from .config import plan_config

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
    repository: ModelRepository, engine: StoredPlan, *, version: int, instances: int | None = None
) -> AddedPlan:
    """Put a stored plan into a version of ``{name}_trt``.

    Args:
        repository: The model repository.
        engine: A plan from the store, whose bytes were checked.
        version: The ONNX sibling's version that it was built from.
        instances: Copies that Triton runs side by side on each GPU; None leaves what the model has, or 2.

    Raises:
        RepositoryError: The version has another plan for that architecture, or cannot be written.
        PlanManifestError: The manifest of a plan that is there is damaged.
    """
    identity = engine.manifest.identity
    model = plan_model(identity.model)
    folder = repository.root / model
    path = folder / str(version) / identity.filename
    record = manifest_path(repository, model, version, identity.sm)
    with repository.staging() as staged, os_errors(repository.root):
        shutil.copyfile(engine.path, staged / identity.filename)
        flush(staged / identity.filename)
        with repository.lock():
            plans = _plans(repository, model)
            recorded = plans.get(version, {}).get(identity.compute_capability)
            _check_unchanged(recorded, engine.manifest, path)
            is_new = not path.is_file()
            plans.setdefault(version, {})[identity.compute_capability] = engine.manifest
            old = _config(folder / CONFIG_FILE)
            before = set(old.cc_model_filenames) if old else set()
            filenames, served = _serving(plans, before)
            identities = [plans[number][capability].identity for number in served for capability in filenames]
            config = plan_config(
                model,
                filenames=filenames,
                versions=served,
                max_batch_size=min(identity.max_batch_size for identity in identities),
                profiles=min(identity.profiles for identity in identities),
                instances=instances,
                old=old,
            )
            text = config_text(config)
            if recorded is None or recorded.plan_sha256 != engine.manifest.plan_sha256:
                replace_text(record, engine.manifest.to_json(), via=staged.parent)
            if is_new:
                _place(staged, path, text)
            if config != old:  # Triton reloads every version when the file is touched
                replace_text(folder / CONFIG_FILE, text, via=staged.parent)
            flush(folder)
            flush(repository.root)
    if old is not None and config != old:
        changes = config_changes(config_text(old), text)
        _log.info("%s of all versions of %s changes: %s", CONFIG_FILE, model, changes)
    if lost := before - filenames.keys():
        _log.warning(
            "%s has no plan for %s any more: no version has the files of all architectures served until now",
            model,
            ", ".join(sorted(lost)),
        )
    if version not in served or identity.compute_capability not in filenames:
        _log.warning(
            "The plan of version %d of %s for %s is not served: %s",
            version,
            model,
            identity.compute_capability,
            _why_not(plans, filenames, version, max(served)),
        )
    return AddedPlan(model, version, path, served, is_new)


def manifest_path(repository: ModelRepository, model: str, version: int, sm: str) -> Path:
    """Where the record of a plan is: in the root, which Triton passes over."""
    return manifests.manifest_path(repository.root, model, version, sm)


def _config(path: Path) -> Any | None:
    """The model's configuration as it is, a ``ModelConfig``, if there is one."""
    if not path.is_file():
        return None
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(
            f"{path} is no configuration of Triton ({error}); mend it, or remove it to have it written anew."
        ) from error


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
        yield parse_manifest(path.read_bytes(), str(path))


def _check_unchanged(recorded: PlanManifest | None, wanted: PlanManifest, path: Path) -> None:
    """Refuse another plan than the one that is there, which the files tell: a record may be gone, or lie."""
    for there in path.parent.glob(f"*-sm{wanted.identity.sm}.plan"):
        if there.name == path.name and describe_plan(there)["plan_sha256"] == wanted.plan_sha256:
            continue
        differences = recorded and ", ".join(wanted.identity.differences(recorded.identity))
        raise RepositoryError(
            f"{path.parent} has a plan for sm{wanted.identity.sm} already, {there.name} "
            f"({differences or 'of other bytes'}). A version is never changed: run `arcface-builder build` "
            "for the next one, and compile that."
        )


def _serving(plans: _Plans, before: Set[str]) -> tuple[dict[str, str], tuple[int, ...]]:
    """Which files to name and which versions to serve; see the module's description.

    Args:
        plans: What there is.
        before: The compute capabilities in the map until now.
    """
    leading = max(plans, key=lambda version: (len(before & plans[version].keys()), version))
    filenames = _names(plans[leading])
    complete = [version for version in sorted(plans) if _names(plans[version]).items() >= filenames.items()]
    return filenames, tuple(complete[-VERSIONS_SERVED:])


def _why_not(plans: _Plans, filenames: dict[str, str], version: int, leading: int) -> str:
    missing = ", ".join(sorted(filenames.keys() - plans[version].keys()))
    if version > leading:
        return (
            f"version {leading} serves on until version {version} has plans for {missing} too; "
            f"or remove version {leading} to give these architectures up"
        )
    return f"version {leading} is; compile that"


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
