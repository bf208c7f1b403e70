"""Paths that begin in somebody's home directory."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError


def expanded(path: Path) -> Path:
    """A path with the home directory in the place of ``~``.

    Raises:
        ConfigError: There is no such home: of a user without one, as in many containers, or of nobody.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"There is no home directory for {path}; set HOME, or name another folder "
            "(ARCFACE_CACHE_DIR for the cache)."
        ) from error
