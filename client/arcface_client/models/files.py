"""Files on this machine: the home directory, the cache folder, SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..errors import ConfigError

_CHUNK_BYTES: Final = 1 << 20


def expanded(path: Path) -> Path:
    """A path with the home directory in place of ``~``.

    Raises:
        ConfigError: There is no such home directory, as in many containers.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"There is no home directory for {path}; set HOME, or name another folder "
            "(ARCFACE_CACHE_DIR for the cache)."
        ) from error


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for plans and downloads: ``$ARCFACE_CACHE_DIR``, ``$XDG_CACHE_HOME`` or ``~/.cache``.

    In the last two it is the folder ``arcface-triton``.

    Raises:
        ConfigError: There is no home directory, and no variable names another folder.
    """
    if configured := environment.get("ARCFACE_CACHE_DIR"):
        return expanded(Path(configured))
    return Path(environment.get("XDG_CACHE_HOME") or expanded(Path("~/.cache"))) / "arcface-triton"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal digits; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
