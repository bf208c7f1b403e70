"""Users of an embedder, who check everything that they get."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ArcFaceError
from support.processes import wait_until
from support.siblings import PLAN

from .tally import Tally

COUNTS = (1, 2, 8, 9, 40, 200, 800)
TIMEOUTS_S = (None, None, 0.3, 1.0, 3.0, 20.0)

NOTICED_S = 30.0
"""Time in which an embedder has to notice that a server is gone, in seconds."""

BACK_S = 60.0
"""Time in which an embedder has to be back at its first choice when every fault is over, in seconds."""


@dataclass(frozen=True, eq=False)
class Faces:
    """Crops, uint8 [N, 112, 112, 3], and what their embeddings have to be, float32 [N, 512]."""

    crops: Crops
    truth: Embeddings

    def draw(self, chance: random.Random) -> tuple[Crops, Embeddings]:
        """Some of them, in any order, so that a misplaced one shows."""
        rows = np.array(chance.choices(range(len(self.crops)), k=chance.choice(COUNTS)))
        return self.crops[rows], self.truth[rows]


@dataclass(frozen=True, eq=False)
class Subject:
    """An embedder under load.

    Attributes:
        embedder: The embedder.
        has_local: Whether it can embed in this process, so that only a deadline excuses an error.
        tally: Counts what comes of the calls.
    """

    embedder: TritonBackend
    has_local: bool
    tally: Tally

    def use(self, faces: Faces, chance: random.Random, ended: Callable[[], bool]) -> None:
        """Call ``encode`` until the end, with crops and deadlines by chance."""
        while not ended():
            crops, truth = faces.draw(chance)
            timeout_s = chance.choice(TIMEOUTS_S)
            started = time.monotonic()
            try:
                embeddings, served = self.embedder.encode(crops, timeout_s=timeout_s, return_source=True)
            except ArcFaceError as error:
                took_s, outcome = time.monotonic() - started, repr(error)
                self.tally.failed(error, took_s, timeout_s, has_local=self.has_local)
                time.sleep(0.05)
            else:
                took_s, outcome = time.monotonic() - started, repr(served)
                self.tally.served(embeddings, truth, served)
            self.tally.ended(took_s, timeout_s, outcome)

    def notices_that_it_is_gone(self, url: str) -> None:
        """Wait until it does."""

        def is_out() -> bool:
            there = [state for name, state in self._states().items() if name.endswith(f" at {url}")]
            return not {"serving", "standing by", "cooling down"}.intersection(there)

        if not within(NOTICED_S, is_out):
            self.tally.bug(f"That {url} was gone was not noticed within {NOTICED_S:g} s.")

    def comes_back_to(self, url: str, faces: Faces) -> None:
        """Wait until it is at its first choice again, and embed by it."""
        first = f"{PLAN}:1 at {url}"
        if not within(BACK_S, lambda: self._states().get(first) == "serving"):
            self.tally.bug(f"{first} did not serve within {BACK_S:g} s of the end: {self._states()}")
            return
        embeddings, served = self.embedder.encode(faces.crops, return_source=True)
        self.tally.served(embeddings, faces.truth, served)
        if served.fell_back:
            self.tally.bug(f"With every fault over, a call fell back: {served}")

    def _states(self) -> dict[str, str]:
        return {one.candidate: one.state for one in self.embedder.diagnostics().candidates}


def within(timeout_s: float, condition: Callable[[], bool]) -> bool:
    """Whether something is so within a time."""
    try:
        wait_until(condition, timeout_s)
    except AssertionError:
        return False
    return True
