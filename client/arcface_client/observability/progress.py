"""What library code does with the progress callback of its caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..contract import Progress

__all__ = ["Progress", "counted", "no_progress"]

T = TypeVar("T")


def no_progress(stage: str, done: float | None) -> None:
    """The callback of a caller that does not want to know."""


def counted(items: Iterable[T], progress: Progress, stage: str, total: int) -> Iterator[T]:
    """Yield the items, and report before each how many of ``total`` are done."""
    for done, item in enumerate(items):
        progress(stage, done / total)
        yield item
