"""The ``{name}_trt`` sibling in a model repository: plans beside plans, one for each architecture.

Which versions are served of them, ``served.py`` tells.

Adding a plan puts its file into the version before the map names it, so that a server that looks in between
finds nothing amiss. A plan that is there is never changed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcface_client.models.naming import plan_model

from ..errors import PlanDamagedError
from ..store import StoredPlan, check_plan
from .config import CONFIG_FILE, config_changes, config_text, losses, plan_config, read_config
from .disk import flush
from .publish import ModelRepository, os_errors, place, replace_text
from .published import Plans, check_alike, check_unchanged, manifest_path, published_plans
from .version_policy import names, serving, why_not

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
        tensorrt_version: The TensorRT that it is by.
        platform: The operating system and processor that it is for.
    """

    model: str
    version: int
    path: Path
    served: tuple[int, ...]
    is_new: bool
    tensorrt_version: str
    platform: str


def add_plan(
    repository: ModelRepository, plan: StoredPlan, *, version: int, instances: int | None = None
) -> AddedPlan:
    """Put one stored plan into a version; see ``add_plans``."""
    (added,) = add_plans(repository, [plan], version=version, instances=instances)
    return added


def add_plans(
    repository: ModelRepository, stored: Sequence[StoredPlan], *, version: int, instances: int | None = None
) -> list[AddedPlan]:
    """Put stored plans of one model into a version of ``{name}_trt``: all of them, or none.

    Args:
        repository: The model repository.
        stored: Plans from the store, whose bytes were checked, each for another architecture.
        version: The ONNX sibling's version that they were built from.
        instances: Copies that Triton runs side by side on each GPU; None leaves what the model has, or 2.

    Raises:
        RepositoryError: The version has another plan for an architecture, or plans by another TensorRT or for
            another platform, or cannot be written.
        PlanDamagedError: A plan, there or from the store, is not what its manifest says.
        ManifestError: The manifest of a plan that is there is damaged.
    """
    wanted = {plan.manifest.identity.compute_capability: plan.manifest for plan in stored}
    model = plan_model(stored[0].manifest.identity.model)
    model_folder = repository.root / model
    folder = model_folder / str(version)
    with repository.staging() as staged, os_errors(repository.root):
        for plan in stored:
            copy = staged / plan.manifest.identity.filename
            try:
                shutil.copyfile(plan.path, copy)
            except FileNotFoundError as error:
                raise PlanDamagedError(f"{plan.path} was removed meanwhile; compile again.") from error
            # It may have been changed since it was found.
            check_plan(copy, plan.manifest, where=str(plan.path))
            flush(copy)
        with repository.lock():
            plans = published_plans(repository, model)
            there = plans.setdefault(version, {})
            for capability, manifest in wanted.items():
                check_unchanged(there.get(capability), manifest, folder)
            check_alike([manifest.identity for manifest in (*there.values(), *wanted.values())], folder)
            recorded = dict(there)
            there.update(wanted)
            old = read_config(model_folder / CONFIG_FILE)
            before = set(old.cc_model_filenames) if old else set()
            filenames, served = serving(plans, before)
            config = _configured(model, plans, filenames, served, instances, old)
            text = config_text(config)
            is_new = {capability: not (folder / name).is_file() for capability, name in names(wanted).items()}
            had_folder = model_folder.is_dir()
            records = {
                capability: manifest_path(repository, model, version, manifest.identity.sm)
                for capability, manifest in wanted.items()
            }
            try:
                for capability, manifest in wanted.items():
                    if recorded.get(capability) != manifest:
                        replace_text(records[capability], manifest.to_json(), via=staged.parent)
                _place(staged, folder, text)
            finally:  # no record without its plan
                for capability, name in names(wanted).items():
                    if not (folder / name).is_file():
                        records[capability].unlink(missing_ok=True)
            if had_folder and config != old:  # Triton reloads every version when the file is touched
                replace_text(model_folder / CONFIG_FILE, text, via=staged.parent)
            flush(model_folder)
            flush(repository.root)
    if old is not None and config != old:
        changes = config_changes(config_text(old), text)
        _log.info("%s of all versions of %s changes: %s", CONFIG_FILE, model, changes)
        for sentence in losses(old, config):
            _log.warning("%s", sentence)
    if lost := before - filenames.keys():
        _log.warning(
            "%s has no plan for %s any more: no version has the files of all architectures served until now",
            model,
            ", ".join(sorted(lost)),
        )
    for capability in wanted:
        if version not in served or capability not in filenames:
            _log.warning(
                "The plan of version %d of %s for %s is not served: %s",
                version,
                model,
                capability,
                why_not(plans, filenames, version, max(served)),
            )
    return [
        AddedPlan(
            model,
            version,
            folder / manifest.identity.filename,
            served,
            is_new[capability],
            manifest.identity.tensorrt_version,
            manifest.identity.platform,
        )
        for capability, manifest in wanted.items()
    ]


def _configured(
    model: str,
    plans: Plans,
    filenames: dict[str, str],
    served: tuple[int, ...],
    instances: int | None,
    old: Any | None,
) -> Any:
    identities = [plans[number][capability].identity for number in served for capability in filenames]
    return plan_config(
        model,
        filenames=filenames,
        versions=served,
        max_batch_size=min(identity.max_batch_size for identity in identities),
        profiles=min(identity.profiles for identity in identities),
        instances=instances,
        old=old,
    )


def _place(staged: Path, version: Path, config: str) -> None:
    """Move staged plans into their version; a missing version or model appears by one rename."""
    if not version.is_dir():
        flush(staged)
        place(staged, version, config)
        return
    for plan in sorted(staged.iterdir()):
        if not (version / plan.name).is_file():
            plan.rename(version / plan.name)
    flush(version)
