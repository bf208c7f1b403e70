"""Starting TensorRT, whichever module it is: the caller hands in the class."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any


def start(kind: Callable[[Any], Any], log: Any) -> Any | None:
    """Make a TensorRT builder or runtime; None if TensorRT cannot, and the logger has its reason.

    TensorRT holds a lock while it warns of another logger, and takes it where one of its objects ends: one
    that Python's garbage collector ended inside our logger would wait for ever. So it is collected before.
    """
    gc.collect()
    try:
        return kind(log)
    except TypeError:  # what pybind11 makes of a null pointer
        return None
