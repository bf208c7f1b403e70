"""A table of parsers of outside data: a sample of what each reads, and the errors that it may raise."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from fuzz.damage import damaged


class Place(NamedTuple):
    """What a parser is made with: a folder of its own, and what its test undoes."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch


class Parser(NamedTuple):
    """A parser of outside data.

    Attributes:
        good: What it reads.
        read: Reads, and does with the result what a command would.
        errors: What it may raise; none for one that takes damage for missing data.
        refuses: Whether much of the damage is an error.
        damage: Makes bad ones of the good one.
    """

    good: bytes
    read: Callable[[bytes], object]
    errors: type[Exception] | tuple[type[Exception], ...]
    refuses: bool = True
    damage: Callable[[bytes, random.Random], bytes] = damaged


class Parsers(dict[str, Callable[[Place], Parser]]):
    """What makes each parser, by its name."""

    def add(self, *names: str) -> Callable[[Callable[..., Parser]], Callable[..., Parser]]:
        """Add a function that makes a parser, or one by each name that it is given."""

        def add(make: Callable[..., Parser]) -> Callable[..., Parser]:
            for name in names:
                self[f"{make.__name__} {name}"] = partial(make, name)
            if not names:
                self[make.__name__] = make
            return make

        return add


def of_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode(errors="replace"))


def of_file(read: Callable[[Path], object], path: Path) -> Callable[[bytes], object]:
    def write_and_read(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return write_and_read
