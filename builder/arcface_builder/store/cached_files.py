"""The files of plans in the local cache: how they are found, read, compared and moved."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import PlanDamagedError
from .plan_manifest import ENDING, PlanManifest, check_plan, read_manifest
from .stored_plan import StoredPlan

_DEPTH: Final = 4  # of folders between engines/ and a plan, as its identity's prefix has them
_TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)


def cached_files(engines: Path) -> Iterator[Path]:
    """The files at the depth of plans, in order; what is not there is empty."""
    folders = [engines]
    for _ in range(_DEPTH):
        folders = [path for folder in folders for path in _listed(folder) if path.is_dir()]
    for folder in folders:
        yield from _listed(folder)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def read_manifest_of(plan: Path, key: str) -> PlanManifest:
    """Read the manifest beside a plan.

    Raises:
        FileNotFoundError: There is none.
        PlanManifestError: It is damaged, or belongs to another plan.
    """
    record = plan.with_name(f"{plan.name}{ENDING}")
    return read_manifest(record.read_bytes(), key=key, place=f"cache ({record.parent})")


def compare_plan(plan: Path, manifest: PlanManifest) -> StoredPlan:
    """Compare a plan's bytes with its manifest.

    Raises:
        PlanDamagedError: They differ, or are not there.
    """
    try:
        check_plan(plan, manifest, where=str(plan))
    except FileNotFoundError as error:
        raise PlanDamagedError(f"{plan} is missing beside its manifest.") from error
    return StoredPlan(plan, manifest)


def try_rename(folder: Path, target: Path) -> bool:
    """Rename a folder unless something is in the way; tells whether it was."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True
