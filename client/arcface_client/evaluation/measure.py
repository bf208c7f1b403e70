"""Let systems embed the same crops in turns: their embeddings, their drift between batches, their speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from ..contract import Crops, Embeddings, Progress, no_progress
from .scores import largest_drift
from .systems import System

SINGLE_CROPS: Final = 64
"""How many crops at most are also embedded one by one."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What was measured of one system.

    Attributes:
        name: The system's name.
        kind: "served", "in process" or "reference".
        where: The server's address, or the file.
        norm_min: Least length of an embedding.
        norm_max: Greatest length.
        drift_between_batches: Largest drift of a crop from itself: alone, and at other places in batches.
        speed: By batch size.
        embeddings: Of all crops, float32 [N, D].
    """

    name: str
    kind: str
    where: str
    norm_min: float
    norm_max: float
    drift_between_batches: float
    speed: Sequence[Speed]
    embeddings: Embeddings

    def to_dict(self) -> dict[str, Any]:
        """Give all fields but the embeddings, for JSON."""
        values = asdict(self)
        del values["embeddings"]
        return values


def measure(
    systems: Sequence[System], crops: Crops, batch_size: int, progress: Progress = no_progress
) -> list[Measured]:
    """Let systems embed crops one by one, in batches, and in other batches, in turns.

    Args:
        systems: What is measured; the first one is the baseline of the speedup.
        crops: uint8 [N, 112, 112, 3].
        batch_size: Crops in a batch, at most N.
        progress: Called before each turn.

    Raises:
        ArcFaceError: A system failed.
    """
    for system in systems:  # the first run of a batch size is slow
        dim = system.embed(crops[:batch_size]).shape[1]
        system.embed(crops[:1])
    # A shift by half a batch gives each crop another place, and other crops in half of its batch.
    places = np.roll(np.arange(len(crops)), batch_size // 2 + 1)
    passes = [(crops[:SINGLE_CROPS], 1), (crops, batch_size), (crops[places], batch_size)]
    embeddings = [[np.empty((len(batch), dim), np.float32) for batch, _ in passes] for _ in systems]
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
    measured = []
    for system, (single, batched, shifted), times in zip(systems, embeddings, seconds, strict=True):
        shift_drift = largest_drift(batched, shifted[own_order])
        lengths = np.linalg.norm(batched.astype(np.float64), axis=1)
        measured.append(
            Measured(
                name=system.name,
                kind=system.kind,
                where=system.where,
                norm_min=float(lengths.min()),
                norm_max=float(lengths.max()),
                drift_between_batches=max(shift_drift, largest_drift(batched[: len(single)], single)),
                speed=[_speed(size, times[size], seconds[0][size]) for size in times],
                embeddings=batched,
            )
        )
    return measured


def _speed(batch_size: int, seconds: Sequence[float], baseline: Sequence[float]) -> Speed:
    median = statistics.median(seconds)
    return Speed(
        batch_size=batch_size,
        latency_ms=1000 * median,
        faces_per_s=batch_size / median,
        speedup=statistics.median(b / own for own, b in zip(seconds, baseline, strict=True)),
        turns=len(seconds),
    )
