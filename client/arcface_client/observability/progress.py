"""How far a long piece of work is: a callback that library code calls and commands show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[str, float | None], None]
"""Called with the name of a stage and the share of it that is done, 0 to 1; None if that is unknown."""


def no_progress(stage: str, done: float | None) -> None:
    """The callback of a caller that does not want to know."""


def counted(items: Iterable[T], progress: Progress, stage: str, total: int) -> Iterator[T]:
    """Yield the items, and report before each how many of ``total`` are done."""
    for done, item in enumerate(items):
        progress(stage, done / total)
        yield item
