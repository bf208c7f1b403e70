"""The calls, counted, and the result."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from arcface_client.contract import Embeddings
from arcface_client.errors import ArcFaceError, DeadlineExceededError, NoCandidateError, NoCandidateNowError
from arcface_client.observability.diagnostics import Served

LATE_S = 1.5
"""How much later than its deadline a call may end, in seconds, while servers are started beside it."""

LARGEST_DRIFT = 1e-5
"""The same model gives the same embeddings wherever it runs."""


@dataclass
class Tally:
    """Counts of a run. Safe to share between threads.

    Attributes:
        calls: Calls that were served.
        faces: Their crops.
        sources: Faces by who embedded them.
        errors: Calls that ended in an error, by kind.
        faults: Faults that happened, by kind.
        fallbacks: Times that a call was left to the next candidate, by reason.
        wrong: Rows that are not their crop's embedding: missing, misplaced, or another model's.
        miscounted: Calls whose report accounts for more or fewer crops than they had.
        late: Calls that ended more than LATE_S after their deadline.
        bugs: What must not happen, in words.
    """

    calls: int = 0
    faces: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    miscounted: int = 0
    late: int = 0
    bugs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong that must not."""
        return self.calls > 0 and not (self.wrong or self.miscounted or self.late or self.bugs)

    def served(self, embeddings: Embeddings, truth: Embeddings, served: Served) -> None:
        """Count a call that was served, and hold its embeddings against what they have to be."""
        wrong = wrong_rows(embeddings, truth)
        with self._lock:
            self.calls += 1
            self.faces += len(truth)
            self.wrong += wrong
            self.miscounted += sum(source.crops for source in served.sources) != len(truth)
            for source in served.sources:
                self.sources[f"{source.model} at {source.where}"] += source.crops

    def failed(self, error: ArcFaceError, took_s: float, timeout_s: float | None, *, has_local: bool) -> None:
        """Count a call that was not served; an embedder with a model in this process may only be late."""
        if isinstance(error, DeadlineExceededError):
            allowed = timeout_s is not None and took_s > 0.9 * timeout_s
        else:
            allowed = isinstance(error, (NoCandidateNowError, NoCandidateError)) and not has_local
        with self._lock:
            self.errors[type(error).__name__] += 1
            if not allowed:
                limit = "no limit" if timeout_s is None else f"{timeout_s:g} s"
                self.bugs.append(f"After {took_s:.2f} s ({limit}): {type(error).__name__}: {error}")

    def ended(self, took_s: float, timeout_s: float | None, outcome: str = "") -> None:
        """Count the time of a call, whatever became of it, which is told of late ones."""
        overtime_s = 0.0 if timeout_s is None else took_s - timeout_s
        with self._lock:
            self.late += overtime_s > LATE_S
            if overtime_s > LATE_S:
                self.bugs.append(f"A call with {timeout_s} s took {took_s:.2f} s: {outcome}")

    def happened(self, fault: str) -> None:
        """Count a fault."""
        with self._lock:
            self.faults[fault] += 1

    def bug(self, what: str) -> None:
        """Note what must not happen."""
        with self._lock:
            self.bugs.append(what)

    def text(self) -> str:
        """The counts for people."""
        lines = [
            f"calls        {self.calls}",
            f"faces        {self.faces}: {_listed(self.sources)}",
            f"faults       {sum(self.faults.values())}: {_listed(self.faults)}",
            f"fallbacks    {sum(self.fallbacks.values())}: {_listed(self.fallbacks)}",
            f"errors       {sum(self.errors.values())}: {_listed(self.errors)}",
            f"wrong or missing embeddings  {self.wrong}",
            f"miscounted calls             {self.miscounted}",
            f"late calls                   {self.late}",
            f"bugs                         {len(self.bugs)}",
            *self.bugs[:20],
            "passed" if self.passed else "FAILED",
        ]
        return "\n".join(lines)


def wrong_rows(embeddings: Embeddings, truth: Embeddings) -> int:
    """How many rows of one are not those of the other, at their place; all when the shapes differ."""
    if embeddings.shape != truth.shape:
        return max(len(embeddings), len(truth))
    difference = embeddings.astype(np.float64) - truth
    drift = np.einsum("nd,nd->n", difference, difference) / 2
    # Written so that NaN counts as well.
    return int(np.count_nonzero(~(drift <= LARGEST_DRIFT)))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
