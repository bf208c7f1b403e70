"""The drift of live crops, one after the other, and when it is enough to say that a model is wrong."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from ..contract import Crops, Embeddings

BOUNDS: Final = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Upper bounds of the histogram's buckets; one more has the rest."""

CASES: Final = 3
"""So many crops beyond the tolerance prove a model wrong; fewer may be no faces at all."""

AMONG: Final = 256
"""So many crops one after the other, they have to be among."""

Case = tuple[Crops, Embeddings]
"""One crop, uint8 [112, 112, 3], and what its embedding has to be, float32 [512]."""


@dataclass(frozen=True, eq=False)
class Proof:
    """That a model is wrong.

    Attributes:
        cases: The crops that show it.
        among: How many crops they are among.
        largest: The largest drift of theirs.
    """

    cases: tuple[Case, ...]
    among: int
    largest: float


class DriftRecord:
    """What is known of one model's drift.

    Args:
        max_drift: The tolerance.
    """

    def __init__(self, max_drift: float) -> None:
        self._max_drift = max_drift
        self._count = 0
        self._sum = 0.0
        self._largest = 0.0
        self._beyond = 0
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._cases: deque[tuple[int, float, Case]] = deque(maxlen=CASES)

    def add(self, drift: float, case: Case) -> None:
        """Take a crop into account; it is kept if its drift is beyond the tolerance."""
        self._count += 1
        self._sum += drift
        self._largest = max(self._largest, drift)
        self._buckets[bisect.bisect_left(BOUNDS, drift)] += 1
        if drift > self._max_drift:
            self._beyond += 1
            self._cases.append((self._count, drift, case))

    def proof(self) -> Proof | None:
        """The proof that the model is wrong, once; the next one takes further crops."""
        if len(self._cases) < CASES:
            return None
        among = self._count - self._cases[0][0] + 1
        if among > AMONG:
            return None
        proof = Proof(
            tuple(case for _, _, case in self._cases), among, max(drift for _, drift, _ in self._cases)
        )
        self._cases.clear()
        return proof

    def snapshot(self) -> dict[str, Any]:
        """The figures, for JSON: count, mean, max, sum, beyond, and the histogram by upper bound."""
        bounds = [*map(str, BOUNDS), "+Inf"]
        return {
            "count": self._count,
            "mean": self._sum / self._count if self._count else None,
            "max": self._largest if self._count else None,
            "sum": self._sum,
            "beyond": self._beyond,
            "histogram": dict(zip(bounds, self._buckets, strict=True)),
        }
