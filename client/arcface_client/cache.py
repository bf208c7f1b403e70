"""Where on this machine is kept what can be had again: plans, and what is downloaded once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$ARCFACE_CACHE_DIR``, else ``arcface-triton`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if configured := environment.get("ARCFACE_CACHE_DIR"):
        return Path(configured).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arcface-triton"
