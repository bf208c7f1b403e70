"""One call over the ranking: which replica is next, what is tried again, and what the caller is told."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from ..errors import (
    ArcFaceError,
    CallCancelledError,
    DeadlineExceededError,
    InputError,
    ModelLoadingError,
    NoCandidateError,
    NoCandidateNowError,
    NotFiniteError,
    ServerBusyError,
    ServerError,
    TransientError,
    detached,
)
from ..observability.diagnostics import Refusal, Served, Source
from ..observability.metrics import Metrics
from ..triton.embed_request import EmbedRequest
from .golden_check import Model
from .health import Health
from .pool import ReplicaPool
from .replica import Replica

BUSY_WAITS_S: Final = (0.05, 0.1, 0.2)
"""Seconds between the tries of one replica whose queue is full, while it makes no progress."""

SILENCE_S: Final = 1.0
"""A replica that uses up a call's time counts as failing when it was silent for so long, in seconds."""

RECONNECT_S: Final = 1.0
"""How long a call without a deadline keeps asking when every server is gone, in seconds."""

MARGIN_S: Final = 0.02
"""A request that is given the rest of a call's time may end this much before it."""

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 1.0


class Call:
    """What one call has tried and reached; the backend's ``run`` asks it which replica is next.

    - The caller's errors (``InputError``), and that the call was cancelled, are raised at once.
    - A full queue is tried again a few times, then the next replica is used.
    - All other errors are the replica's: the next one embeds what is missing.

    ``patience_s`` is how long a call without a deadline waits, without progress, for what may soon be over.
    ``pause`` waits some seconds, and raises when the embedder is closed meanwhile.
    """

    def __init__(
        self,
        request: EmbedRequest,
        pool: ReplicaPool,
        health: Health,
        metrics: Metrics,
        *,
        patience_s: float,
        pause: Callable[[float], None],
    ) -> None:
        self._request = request
        self._pool = pool
        self._health = health
        self._metrics = metrics
        self._patience_s = patience_s
        self._pause = pause
        self._missing = request.missing
        self._draw = random.random()
        self._moved_at = self._began_at = time.monotonic()
        self._credits: dict[Source, int] = {}
        self._failures: dict[str, ArcFaceError] = {}
        self._suspects: list[tuple[Replica, ArcFaceError]] = []
        self._tried: set[str] = set()
        self._again: tuple[Replica, Model] | None = None
        self._busy_waits = iter(BUSY_WAITS_S)
        self._wait_s = _FIRST_WAIT_S

    def next(self) -> tuple[Replica, Model]:
        """The replica to try now: by preference, each once, and all again as long as that may help.

        Raises:
            DeadlineExceededError: The call's time is up.
            NoCandidateNowError: No replica serves, but trying again may help.
            NoCandidateError: No replica can serve before something is fixed.
            NotFiniteError: Only crops are missing whose embeddings are NaN.
        """
        try:
            found = self._again or self._next()
        except DeadlineExceededError as error:
            raise self._too_late(no_candidate(self._reasons())) from error
        self._again = None
        self._began_at = time.monotonic()
        return found

    def failed(self, replica: Replica, model: Model, error: ArcFaceError) -> None:
        """A replica did not embed all that was missing.

        Raises:
            InputError: The crops, or the embedder (closed), cannot be used.
            CallCancelledError: The caller does not wait any more.
            DeadlineExceededError: The call's time is up.
        """
        if isinstance(error, (InputError, CallCancelledError)):
            raise error
        has_moved = self._credit(model.source)
        if self._request.deadline.is_over(MARGIN_S):
            if not has_moved and time.monotonic() - self._began_at >= SILENCE_S:
                self._pool.failed(replica, error)
            raise self._too_late(error) from error
        wait_s = None
        if isinstance(error, ServerBusyError):
            wait_s = 0.0 if has_moved else next(self._busy_waits, None)
        if wait_s is None:
            self._leave(replica, error)
        else:
            self._again = replica, model
            self._pause(min(wait_s, self._request.deadline.remaining_s()))

    def succeeded(self, replica: Replica, model: Model) -> Served:
        """A replica embedded all that was missing; returns who served, and why others did not."""
        self._credit(model.source)
        self._pool.succeeded(replica)
        for other, error in self._suspects:
            if other.name != replica.name:
                self._pool.failed(other, error)
        return self._served(replica)

    def _next(self) -> tuple[Replica, Model]:
        deadline = self._request.deadline
        if not self._health.has_looked:
            self._health.look(deadline)
        while True:
            # Read anew each time, since what other calls meet with counts here, too.
            order = self._pool.ranking.order(self._draw)
            ranked = (one for one in order if one.name not in self._tried)
            replica = next(ranked, None)
            if replica is None and self._pool.has_local:
                replica = self._health.load(deadline, but=self._tried)
            if replica is None:
                self._wait()
            elif replica.model is not None:
                self._tried.add(replica.name)
                self._busy_waits = iter(BUSY_WAITS_S)
                return replica, replica.model

    def _wait(self) -> None:
        """Wait before all replicas are tried again."""
        self._pause(0.0)  # raises if the embedder was closed meanwhile
        not_finite = [name for name, error in self._failures.items() if isinstance(error, NotFiniteError)]
        if not_finite:  # they embedded all other crops, and would give the same again
            self._request.check_finite(" and ".join(not_finite))
        reasons = self._reasons()
        if time.monotonic() - self._moved_at + self._wait_s > self._patience(reasons):
            raise no_candidate(reasons)
        self._pause(min(self._wait_s, self._request.deadline.remaining_s()))
        self._health.look(self._request.deadline, afresh=True)
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        self._tried.clear()

    def _leave(self, replica: Replica, error: ArcFaceError) -> None:
        """Leave the rest to the next replica."""
        error = detached(error)
        self._failures[replica.name] = error
        self._metrics.fell_back(type(error).__name__)
        self._pool.left_a_call(replica, error)
        if isinstance(error, (ServerBusyError, NotFiniteError)):
            return  # neither a full queue nor the embedding of one crop says anything of the next call
        if isinstance(error, ServerError) or replica.is_local:
            # The crops may be at fault; if another replica serves them, they are not.
            self._suspects.append((replica, error))
        else:
            self._pool.failed(replica, error)

    def _credit(self, source: Source) -> bool:
        """Count what a replica embedded; returns whether it embedded anything."""
        crops, self._missing = self._missing - self._request.missing, self._request.missing
        if crops:
            self._moved_at = time.monotonic()
            self._credits[source] = self._credits.get(source, 0) + crops
        return crops > 0

    def _served(self, by: Replica) -> Served:
        ranking = self._pool.ranking
        preferred = {replica.name for replica in ranking.preferred_to(by)}
        reasons = ranking.passed_over(by)
        # A replica that failed and then served after all is not among them.
        reasons |= {name: str(error) for name, error in self._failures.items() if name in preferred}
        return Served(
            tuple(replace(source, crops=crops) for source, crops in self._credits.items()),
            tuple(Refusal(name, reason) for name, reason in reasons.items()),
        )

    def _too_late(self, error: ArcFaceError) -> DeadlineExceededError:
        total, over = len(self._request.crops), self._request.deadline.spent_text
        why = "" if str(error) == f"{over}." else f" {error}"
        return DeadlineExceededError(
            f"{over}; {total - self._request.missing} of {total} crops are embedded.{why}"
        )

    def _reasons(self) -> dict[str, ArcFaceError]:
        """Why no replica serves, by name; what the pool knows is newer than what the call met with."""
        return self._failures | self._pool.ranking.refused

    def _patience(self, reasons: Mapping[str, ArcFaceError]) -> float:
        """How many seconds without progress the call tries all replicas again."""
        if not any(isinstance(error, TransientError) for error in reasons.values()):
            return 0.0
        if math.isfinite(self._request.deadline.timeout_s):
            return math.inf  # the deadline says how long the caller wants to wait
        if any(isinstance(error, (ServerBusyError, ModelLoadingError)) for error in reasons.values()):
            return self._patience_s
        # The server that embedded a part may be restarting, and the part is worth the wait.
        return self._patience_s if self._credits else RECONNECT_S


def no_candidate(reasons: Mapping[str, ArcFaceError]) -> NoCandidateNowError | NoCandidateError:
    """The error that lists every candidate and why it does not serve."""
    if not reasons or any(isinstance(error, TransientError) for error in reasons.values()):
        return NoCandidateNowError(reasons)
    return NoCandidateError(reasons)
