"""Moved to ``fork_guard``."""

from .fork_guard import ForkGuard as MadeHere

__all__ = ["MadeHere"]
