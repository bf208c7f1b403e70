"""Embeds any number of crops: from files, tar files, Parquet and buckets into a gallery; ``docs/bulk.md``.

Public are the names in ``__all__``: what Ray Data and Spark call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ray_data import EmbedCrops
    from .spark import SPARK_TYPE, make_predict_fn

__all__ = ["SPARK_TYPE", "EmbedCrops", "make_predict_fn"]

_MODULES = {"EmbedCrops": "ray_data", "SPARK_TYPE": "spark", "make_predict_fn": "spark"}


def __getattr__(name: str) -> Any:
    # Imported on first use: the other modules of this package need no embedder.
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
