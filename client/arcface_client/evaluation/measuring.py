"""Let embedders take turns on the same crops: their embeddings, alone and in batches, and their speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..contract import EMBEDDING_DIM, Crops, Embeddings, Progress
from .embedders import Embedder
from .statistics import largest_direction_drift

ALONE_CROPS: Final = 64
"""How many crops at most are also embedded one by one."""


@dataclass(frozen=True)
class Turns:
    """What one embedder did with one way of cutting the crops into batches.

    Attributes:
        embeddings: float32 [N, 512].
        seconds: Time of each full batch.
    """

    embeddings: Embeddings
    seconds: Sequence[float]


@dataclass(frozen=True)
class Runs:
    """Everything that one embedder did.

    Attributes:
        alone: Up to ``ALONE_CROPS`` crops, one by one.
        batched: All crops, in batches.
        shifted: All crops, each at another place of another batch; in the crops' own order again.
        batch_size: Crops in a batch.
    """

    alone: Turns
    batched: Turns
    shifted: Turns
    batch_size: int

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that are compared with others': float32 [N, 512]."""
        return self.batched.embeddings

    @property
    def drift_between_batches(self) -> float:
        """Largest drift of a crop with its place and company in a batch, and from the crop alone."""
        own = self.embeddings
        alone = self.alone.embeddings
        return max(
            largest_direction_drift(own, self.shifted.embeddings),
            largest_direction_drift(own[: len(alone)], alone),
        )

    def seconds(self) -> Mapping[int, Sequence[float]]:
        """Times of the batches, by their size, in the order of the turns."""
        batched = [*self.batched.seconds, *self.shifted.seconds]
        # A batch of one is what ``alone`` is, too.
        return {1: self.alone.seconds} | ({self.batch_size: batched} if self.batch_size > 1 else {})


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast an embedder is at one batch size; medians over turns that alternate with the others'.

    Attributes:
        batch_size: Crops in a batch.
        latency_ms: Time of a batch.
        faces_per_s: Crops a second, one batch after the other.
        speedup: How many times as fast as the baseline, within the same turn.
        turns: How many.
    """

    batch_size: int
    latency_ms: float
    faces_per_s: float
    speedup: float
    turns: int


def measure(embedders: Sequence[Embedder], crops: Crops, batch_size: int, progress: Progress) -> list[Runs]:
    """Let embedders take turns.

    Args:
        embedders: What is measured.
        crops: uint8 [N, 112, 112, 3].
        batch_size: Crops in a batch, at most N.
        progress: Is called for each batch.

    Returns:
        What each did, in their order.

    Raises:
        ArcFaceError: One of them failed.
    """
    # Half a batch on, so that each crop has another place and half of its neighbours are others.
    places = np.roll(np.arange(len(crops)), batch_size // 2 + 1)
    for embedder in embedders:  # the first run of a size sets much up
        embedder.embed(crops[:1])
        embedder.embed(crops[:batch_size])
    passes = [(crops[:ALONE_CROPS], 1), (crops, batch_size), (crops[places], batch_size)]
    results = _take_turns(embedders, passes, progress)
    own_order = np.argsort(places)
    return [
        Runs(alone, batched, Turns(shifted.embeddings[own_order], shifted.seconds), batch_size)
        for alone, batched, shifted in results
    ]


def speeds(runs: Runs, baseline: Runs) -> tuple[Speed, ...]:
    """How fast an embedder is, and how many times as fast as the baseline."""
    return tuple(
        Speed(
            batch_size=size,
            latency_ms=1000 * statistics.median(own),
            faces_per_s=size / statistics.median(own),
            speedup=statistics.median(b / a for a, b in zip(own, baseline.seconds()[size], strict=True)),
            turns=len(own),
        )
        for size, own in runs.seconds().items()
    )


def _take_turns(
    embedders: Sequence[Embedder], passes: Sequence[tuple[Crops, int]], progress: Progress
) -> list[tuple[Turns, ...]]:
    """Let everybody embed the first batch of the first pass, then everybody the second, and so on."""
    embeddings = [
        [np.empty((len(crops), EMBEDDING_DIM), np.float32) for crops, _ in passes] for _ in embedders
    ]
    seconds: list[list[list[float]]] = [[[] for _ in passes] for _ in embedders]
    batches = [
        (number, slice(start, min(start + size, len(crops))), size)
        for number, (crops, size) in enumerate(passes)
        for start in range(0, len(crops), size)
    ]
    for turn, (number, part, size) in enumerate(batches):
        progress("measuring", turn / len(batches))
        batch = np.ascontiguousarray(passes[number][0][part])
        for place in range(len(embedders)):
            # Who begins changes, so that nobody always follows the same one.
            who = (turn + place) % len(embedders)
            started = time.perf_counter()
            result = embedders[who].embed(batch)
            took = time.perf_counter() - started
            embeddings[who][number][part] = result
            if len(batch) == size:
                seconds[who][number].append(took)
    return [tuple(map(Turns, own, times)) for own, times in zip(embeddings, seconds, strict=True)]
