"""One call over the ranking: which replicas are tried, what is tried again, and which one does the rest."""

from __future__ import annotations

import math
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
    ServerBusyError,
    ServerError,
    TransientError,
    detached,
)
from ..observability.diagnostics import Refusal, Served, Source
from ..observability.metrics import Metrics
from ..triton.embed_request import EmbedRequest
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

_THE_CALLERS: Final = (InputError, CallCancelledError)
"""Errors that every other replica would raise, too."""

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 1.0


class Call:
    """One call.

    - The caller's errors (``InputError``), and that the call was cancelled, are raised at once.
    - A full queue is tried again a few times, then the next replica is used.
    - All other errors are the replica's: the next one embeds what is missing.

    Args:
        request: The crops; what is embedded before an error stays in it.
        pool: The replicas.
        health: Looks again, and loads models into this process.
        metrics: Counts what happens.
        patience_s: How long to wait without progress for what may soon be over, without a deadline.
        pause: Waits some seconds; raises when the embedder is closed meanwhile.
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
        self._moved_at = time.monotonic()
        self._credits: dict[Source, int] = {}
        self._failures: dict[str, ArcFaceError] = {}
        self._suspects: list[tuple[Replica, ArcFaceError]] = []

    def run(self) -> Served:
        """Embed what is missing, with whichever replicas can.

        Raises:
            InputError: The crops, or the embedder (closed), cannot be used.
            CallCancelledError: The caller does not wait any more.
            DeadlineExceededError: The call's time is up.
            NoCandidateNowError: No replica serves, but trying again may help.
            NoCandidateError: No replica can serve before something is fixed.
        """
        wait_s, asked_again = _FIRST_WAIT_S, False
        if not self._health.has_looked:
            self._look(afresh=False)
        while True:
            served = self._try_all()
            if served is not None:
                return served
            self._pause(0.0)  # raises if the embedder was closed meanwhile
            reasons = self._reasons()
            patience_s = self._patience(reasons)
            stalled_s = time.monotonic() - self._moved_at
            # A server that hung may have used up the patience while another one came back: ask once more.
            if stalled_s + wait_s > patience_s and (asked_again or not patience_s):
                raise no_candidate(reasons)
            if self._is_over:
                raise self._too_late(no_candidate(reasons))
            self._pause(min(wait_s, self._request.deadline.remaining_s()))
            self._look(afresh=True)
            asked_again = True
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _try_all(self) -> Served | None:
        """Let each replica embed what is missing, by preference; None when something still is."""
        tried: set[str] = set()
        while True:
            # Read anew each time, since what other calls meet with counts here, too.
            ranked = (one for one in self._pool.ranking.serving if one.name not in tried)
            replica = next(ranked, None) or self._load(tried)
            if replica is None:
                return None
            tried.add(replica.name)
            if self._try(replica):
                return self._served(replica)

    def _try(self, replica: Replica) -> bool:
        """Let a replica embed what is missing; False when it did not embed all of it."""
        request, model, waits = self._request, replica.model, iter(BUSY_WAITS_S)
        assert model is not None
        while True:
            missing, started, wait_s = request.missing, time.monotonic(), None
            try:
                model.embed(request)
            except _THE_CALLERS:
                raise
            except ServerBusyError as error:
                wait_s = 0.0 if request.missing < missing else next(waits, None)
                failure: ArcFaceError = error
            except ArcFaceError as error:
                failure = error
            else:
                self._pool.succeeded(replica)
                self._blame_suspects(replica)
                return True
            finally:
                self._credit(model.source, missing - request.missing)
            if self._is_over:
                if request.missing == missing and time.monotonic() - started >= SILENCE_S:
                    self._pool.failed(replica, failure)
                raise self._too_late(failure) from failure
            if wait_s is None:
                self._leave(replica, failure)
                return False
            self._pause(min(wait_s, request.deadline.remaining_s()))

    def _load(self, tried: set[str]) -> Replica | None:
        """Load a model into this process that was not tried yet."""
        if not self._pool.has_local:
            return None
        try:
            return self._health.load(self._request.deadline, but=tried)
        except DeadlineExceededError as error:
            raise self._too_late(no_candidate(self._reasons())) from error

    def _look(self, *, afresh: bool) -> None:
        try:
            self._health.look(self._request.deadline, afresh=afresh)
        except DeadlineExceededError as error:
            raise self._too_late(no_candidate(self._reasons())) from error

    def _leave(self, replica: Replica, error: ArcFaceError) -> None:
        """Leave the rest to the next replica."""
        error = detached(error)
        self._failures[replica.name] = error
        self._metrics.fell_back(type(error).__name__)
        self._pool.left_a_call(replica, error)
        if isinstance(error, ServerError) or replica.is_local:
            # The crops may be at fault; if another replica serves them, they are not.
            self._suspects.append((replica, error))
        elif not isinstance(error, ServerBusyError):
            self._pool.failed(replica, error)

    def _blame_suspects(self, by: Replica) -> None:
        for replica, error in self._suspects:
            if replica.name != by.name:
                self._pool.failed(replica, error)

    def _credit(self, source: Source, crops: int) -> None:
        if crops:
            self._moved_at = time.monotonic()
            self._credits[source] = self._credits.get(source, 0) + crops

    def _served(self, by: Replica) -> Served:
        ranking = self._pool.ranking
        preferred = {replica.name for replica in ranking.preferred_to(by)} - {by.name}
        reasons = {refusal.candidate: refusal.reason for refusal in ranking.passed_over(by)}
        # A replica that failed and then served after all is not among them.
        reasons |= {name: str(error) for name, error in self._failures.items() if name in preferred}
        return Served(
            tuple(replace(source, crops=crops) for source, crops in self._credits.items()),
            tuple(Refusal(name, reason) for name, reason in reasons.items()),
        )

    @property
    def _is_over(self) -> bool:
        return self._request.deadline.is_over(MARGIN_S)

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
