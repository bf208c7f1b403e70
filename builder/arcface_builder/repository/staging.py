"""Staging folders: where a version is built before it is renamed into a repository."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from .disk import NO_SPACE, locked

_OWNER_FILE: Final = ".owner"
_PROBE_FILE: Final = ".probe"


def staging_folder(root: Path) -> tuple[Path, int]:
    """Make a staging folder of a repository.

    It lies beside the repository, where Triton does not look: in the repository Triton would take even a
    hidden folder for a model. That has to do where nothing can be renamed from beside it into it, as
    where the repository is a mount of its own.

    Returns:
        The folder, and a descriptor that holds its lock as long as its builder lives.
    """
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(root), dir=root.parent))
        (folder / _PROBE_FILE).touch()
        (folder / _PROBE_FILE).replace(root / _PROBE_FILE)
        (root / _PROBE_FILE).unlink()
    except OSError as error:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        if error.errno in NO_SPACE:
            raise
        folder = Path(tempfile.mkdtemp(prefix=_prefix(root), dir=root))
    return folder, locked(folder / _OWNER_FILE)


def sweep(root: Path) -> None:
    """Remove the staging folders of builders that died: nobody holds their lock."""
    for parent in {root, root.parent}:
        for folder in parent.glob(f"{_prefix(root)}*"):
            try:
                owner = locked(folder / _OWNER_FILE, wait=False)
            except OSError:
                continue  # its builder is at work, or it is somebody else's
            shutil.rmtree(folder, ignore_errors=True)
            os.close(owner)


def _prefix(root: Path) -> str:
    return f".{root.name}-staging-"
