"""Packages that only some need, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtraError: It is not installed, or cannot be loaded; the message says what to do.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {error.name}: pip install 'arcface-triton[{extra}]'"
        ) from error
    except (ImportError, OSError) as error:  # a library of the system's that it needs, as libGL
        raise MissingExtraError(
            f"{purpose} needs the package {module}, which is installed but cannot be loaded: {error}"
        ) from error
