"""Damaged input of every parser of outside data: it is read, or refused by the parser's own error."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
from pathlib import Path
from types import FrameType

import pytest

from fuzz import documents, files
from fuzz.parsers import Place

PARSERS = documents.PARSERS | files.PARSERS

INPUTS = int(os.environ.get("FUZZ_INPUTS", "40"))
"""`make fuzz` sets 100,000."""

LONGEST_S = 10
LARGEST_KB = 2 << 20


class HangsError(BaseException):
    """No parser catches it."""


def hangs(_: int, __: FrameType | None) -> None:
    raise HangsError(f"it takes longer than {LONGEST_S} s")


@pytest.mark.timeout(0)  # each input has a limit of its own
@pytest.mark.filterwarnings("ignore")  # of Pillow and NumPy, about odd numbers
@pytest.mark.parametrize("name", PARSERS)
def test_damaged_input_is_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.disable(logging.CRITICAL)  # warnings about odd input
    seed = random.randrange(2**32) if "FUZZ_INPUTS" in os.environ else 0
    refused = 0
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, hangs)
    try:
        parser = PARSERS[name](Place(tmp_path, monkeypatch))
        parser.read(parser.good)
        for number in range(INPUTS):
            data = parser.damage(parser.good, random.Random(f"{name} {seed} {number}"))
            signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
            try:
                parser.read(data)
            except parser.errors as refusal:
                refused += 1
                assert str(refusal)
            except BaseException as other:
                raise AssertionError(f"{name}: {data!r} raised {other!r}") from other
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        logging.disable(logging.NOTSET)
    assert refused > INPUTS // 20 or not parser.refuses, "the damage is seen"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < LARGEST_KB, "memory"
