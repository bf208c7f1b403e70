"""Where on this machine is kept what can be had again: plans, and what is downloaded once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .home import expanded


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$ARCFACE_CACHE_DIR``, else ``arcface-triton`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        ConfigError: There is no home directory, and no variable names another folder.
    """
    if configured := environment.get("ARCFACE_CACHE_DIR"):
        return expanded(Path(configured))
    return Path(environment.get("XDG_CACHE_HOME") or expanded(Path("~/.cache"))) / "arcface-triton"
