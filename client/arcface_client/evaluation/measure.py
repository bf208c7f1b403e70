"""Let systems embed the same crops in turns: their embeddings, their drift between batches, their speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..contract import EMBEDDING_DIM, Crops, Embeddings, Progress, no_progress
from .scores import largest_drift
from .systems import System

SINGLE_CROPS: Final = 64
"""How many crops at most are also embedded one by one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """What one system did.

    Attributes:
        embeddings: Of all crops, float32 [N, 512].
        drift_between_batches: Largest drift of a crop from itself: alone, and at other places in batches.
        seconds: Times of the full batches by batch size, in the order of the turns.
    """

    embeddings: Embeddings
    drift_between_batches: float
    seconds: Mapping[int, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a system is at one batch size; medians over turns that alternate with the other systems'.

    Attributes:
        batch_size: Crops in a batch.
        latency_ms: Time of a batch.
        faces_per_s: Crops a second, one batch after the other.
        speedup: Baseline's time divided by this system's, within the same turn.
        turns: How many turns were measured.
    """

    batch_size: int
    latency_ms: float
    faces_per_s: float
    speedup: float
    turns: int


def measure(
    systems: Sequence[System], crops: Crops, batch_size: int, progress: Progress = no_progress
) -> list[Measurement]:
    """Let systems embed crops one by one, in batches, and in other batches, in turns.

    Args:
        systems: What is measured.
        crops: uint8 [N, 112, 112, 3].
        batch_size: Crops in a batch, at most N.
        progress: Called before each turn.

    Returns:
        One measurement for each system.

    Raises:
        ArcFaceError: A system failed.
    """
    for system in systems:  # the first run of a batch size is slow
        system.embed(crops[:1])
        system.embed(crops[:batch_size])
    # A shift by half a batch gives each crop another place, and other crops in half of its batch.
    places = np.roll(np.arange(len(crops)), batch_size // 2 + 1)
    passes = [(crops[:SINGLE_CROPS], 1), (crops, batch_size), (crops[places], batch_size)]
    embeddings = [[np.empty((len(batch), EMBEDDING_DIM), np.float32) for batch, _ in passes] for _ in systems]
    seconds: list[dict[int, list[float]]] = [{1: [], batch_size: []} for _ in systems]
    turns = [
        (number, slice(start, min(start + size, len(batch))), size)
        for number, (batch, size) in enumerate(passes)
        for start in range(0, len(batch), size)
    ]
    for turn, (number, part, size) in enumerate(turns):
        progress("measuring", turn / len(turns))
        batch = np.ascontiguousarray(passes[number][0][part])
        for place in range(len(systems)):
            # The first system of a turn changes, so that none always follows the same one.
            index = (turn + place) % len(systems)
            started = time.perf_counter()
            result = systems[index].embed(batch)
            took = time.perf_counter() - started
            embeddings[index][number][part] = result
            if len(batch) == size:
                seconds[index][size].append(took)
    own_order = np.argsort(places)
    return [
        Measurement(
            embeddings=batched,
            drift_between_batches=max(
                largest_drift(batched, shifted[own_order]), largest_drift(batched[: len(single)], single)
            ),
            seconds=times,
        )
        for (single, batched, shifted), times in zip(embeddings, seconds, strict=True)
    ]


def speeds(own: Measurement, baseline: Measurement) -> tuple[Speed, ...]:
    """Compute a system's speed by batch size, also relative to the baseline."""
    return tuple(
        Speed(
            batch_size=size,
            latency_ms=1000 * statistics.median(times),
            faces_per_s=size / statistics.median(times),
            speedup=statistics.median(b / a for a, b in zip(times, baseline.seconds[size], strict=True)),
            turns=len(times),
        )
        for size, times in own.seconds.items()
    )
