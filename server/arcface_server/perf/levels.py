"""Lists of numbers as a command line gives them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable


def parse_levels(text: str) -> tuple[int, ...]:
    """Read a list of concurrencies or batch sizes, for ``argparse``.

    Args:
        text: ``1,8,32`` is these three, ``1:16`` is 1 doubled until 16, ``2:8:3`` is 2, 5 and 8.

    Returns:
        The numbers in ascending order, each once.

    Raises:
        argparse.ArgumentTypeError: It is no such list, or a number is less than 1.
    """
    try:
        levels = {level for part in text.split(",") for level in _levels(*map(int, part.split(":")))}
    except (TypeError, ValueError) as error:  # too many numbers, or none
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers from 1 up; expected, for example, 4 or 1,8,32 or "
            "1:16 (1 doubled until 16) or 2:8:3 (from 2 to 8 in steps of 3)"
        ) from error
    return tuple(sorted(levels))


def _levels(first: int, last: int | None = None, step: int | None = None) -> Iterable[int]:
    last = first if last is None else last
    if not 1 <= first <= last or (step is not None and step < 1):
        raise ValueError
    if step is not None:
        return range(first, last + 1, step)
    doublings = (last // first).bit_length()
    return [*(first << doubling for doubling in range(doublings)), last]
