"""One call over the candidates: who is tried, what is tried again, and who does the rest."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ..backends.base import Refusal, Served, Source
from ..errors import (
    ArcFaceError,
    DeadlineExceededError,
    InputError,
    ModelLoadingError,
    NoCandidateError,
    NoCandidateNowError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
    TransientError,
)
from ..job import Job
from ..metrics import Metrics
from .contender import Contender
from .last_resort import LastResort
from .selector import Selector

BUSY_WAITS_S: Final = (0.05, 0.1, 0.2)
"""Seconds between the tries of one candidate that is full or loading, while it makes no headway."""

RECONNECT_S: Final = 1.0
"""How long a call keeps asking when every server is gone, in seconds: a broken connection is no more."""

SILENCE_S: Final = 1.0
"""A candidate that used up a call's time counts as failing if that was so long, in seconds, and for nothing."""

_MARGIN_S: Final = 0.02
"""A request that is given the rest of a call's time ends this much before it, or after."""

_LONGEST_WAIT_S: Final = 1.0


class Fallback:
    """Runs calls over a selection's ranking.

    - The caller's errors (``InputError``) are raised at once.
    - The moment's (a full queue, a model that loads) are tried again, then the next candidate is.
    - All others are the candidate's: the next one does what is missing.

    Args:
        selector: Who may serve.
        last_resort: Who serves when nobody else does; None where nobody may.
        metrics: Counts what happens.
        patience_s: How long a call without a deadline waits for full queues and loading models.
        pause: Waits some seconds; raises when the embedder is closed meanwhile.
    """

    def __init__(
        self,
        selector: Selector,
        last_resort: LastResort | None,
        metrics: Metrics,
        *,
        patience_s: float,
        pause: Callable[[float], None],
    ) -> None:
        self._selector = selector
        self._last_resort = last_resort
        self._metrics = metrics
        self._patience_s = patience_s
        self._pause = pause

    def run(self, job: Job) -> Served:
        """Embed what a job misses, whoever does it.

        Raises:
            InputError: The crops, or the embedder (closed), cannot be used.
            DeadlineExceededError: The call's time is up.
            NoCandidateNowError: Nobody serves, but trying again may help.
            NoCandidateError: Nobody serves before something is mended.
        """
        call = _Call(job, self._patience_s)
        for wait_s in _backoff():
            for contender in self._selector.standing.ranking:
                if contender.error is None and self._try(contender, call):
                    return call.served(self._selector.standing.passed_over.get(contender, ()))
            if self._last_resort is not None and self._try_last_resort(self._last_resort, call):
                return call.served(self._selector.standing.refusals)
            reasons = call.reasons(self._selector.standing.refused)
            if call.age_s + wait_s > call.patience_s(reasons):
                raise nobody(reasons)
            self._pause(min(wait_s, job.deadline.remaining_s()))
            if job.deadline.is_over(_MARGIN_S):
                raise call.too_late(nobody(reasons))
            self._selector.look(job.deadline, afresh=True)
        raise AssertionError("the backoff has no end")

    def _try(self, contender: Contender, call: _Call) -> bool:
        """Let a candidate do what is missing; False when it did not all of it."""
        job, candidate = call.job, contender.candidate
        source = Source("triton", candidate.model, candidate.version, candidate.url, 0)
        waits = iter(BUSY_WAITS_S)
        while True:
            missing, started = job.missing, time.monotonic()
            try:
                with contender.server.call():
                    contender.client.work(job)
            except InputError:
                raise
            except (ServerBusyError, ModelLoadingError) as error:
                wait_s = 0.0 if job.missing < missing else next(waits, None)
                failure: ArcFaceError = error
            except ArcFaceError as error:
                wait_s, failure = None, error
            else:
                self._selector.succeeded(contender)
                self._settle_suspicions(call)
                return True
            finally:
                call.credit(source, missing - job.missing)
            if job.deadline.is_over(_MARGIN_S):
                if job.missing == missing and time.monotonic() - started >= SILENCE_S:
                    self._selector.failed(contender, failure)
                raise call.too_late(failure) from failure
            if wait_s is None:
                self._give_up(contender, failure, call)
                return False
            self._pause(min(wait_s, job.deadline.remaining_s()))

    def _give_up(self, contender: Contender, error: ArcFaceError, call: _Call) -> None:
        call.failures[str(contender)] = error
        self._metrics.fell_back(type(error).__name__)
        if isinstance(error, ServerError):
            # It may be the crops that it failed on; who serves them next settles that.
            call.suspects.append((contender, error))
        elif not isinstance(error, ServerBusyError):
            self._selector.failed(contender, error)

    def _try_last_resort(self, last_resort: LastResort, call: _Call) -> bool:
        call.job.deadline.remaining_s()
        missing = call.job.missing
        try:
            served = last_resort.run(call.job)
        except InputError:
            raise
        except ArcFaceError as error:
            if call.job.deadline.is_over(_MARGIN_S):
                raise call.too_late(error) from error
            call.failures["this process"] = error
            return False
        call.credit(served.sources[-1], missing)
        self._metrics.fell_back("LastResort")
        self._settle_suspicions(call)
        return True

    def _settle_suspicions(self, call: _Call) -> None:
        for contender, error in call.suspects:
            self._selector.failed(contender, error)


class _Call:
    """What a call went through so far."""

    def __init__(self, job: Job, patience_s: float) -> None:
        self.job = job
        self.failures: dict[str, ArcFaceError] = {}
        self.suspects: list[tuple[Contender, ServerError]] = []
        self._patience_s = patience_s
        self._started = time.monotonic()
        self._credits: dict[Source, int] = {}

    @property
    def age_s(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._started

    def credit(self, source: Source, crops: int) -> None:
        """Note who embedded how many."""
        if crops:
            source = replace(source, crops=0)
            self._credits[source] = self._credits.get(source, 0) + crops

    def served(self, passed_over: tuple[Refusal, ...]) -> Served:
        """The report on a call that is done."""
        sources = tuple(replace(source, crops=crops) for source, crops in self._credits.items())
        reasons = {refusal.candidate: refusal.reason for refusal in passed_over}
        reasons |= {name: str(error) for name, error in self.failures.items()}
        return Served(sources, tuple(Refusal(name, reason) for name, reason in reasons.items()))

    def too_late(self, error: ArcFaceError) -> DeadlineExceededError:
        """The error for a call whose time is up, and not that of a request alone."""
        total = len(self.job.crops)
        return DeadlineExceededError(
            f"The time allowed for the whole call, {self.job.deadline.timeout_s:g} s, is over; "
            f"{total - self.job.missing} of {total} crops are embedded. {error}"
        )

    def reasons(self, refused: Iterable[tuple[str, ArcFaceError]]) -> dict[str, ArcFaceError]:
        """Why nobody serves, by candidate: what this call met with, and what was known before."""
        return dict(refused) | self.failures

    def patience_s(self, reasons: Mapping[str, ArcFaceError]) -> float:
        """How long after its start the call still tries them all again."""
        if any(isinstance(error, (ServerBusyError, ModelLoadingError)) for error in reasons.values()):
            return self._patience_s
        if any(isinstance(error, ServerUnavailableError) for error in reasons.values()):
            return RECONNECT_S
        return 0.0


def nobody(reasons: Mapping[str, ArcFaceError]) -> ArcFaceError:
    """The error that lists every candidate and why it did not serve."""
    each = "; ".join(f"{name}: {error}" for name, error in reasons.items()) or "There is none."
    if any(isinstance(error, TransientError) for error in reasons.values()):
        return NoCandidateNowError(f"No candidate serves now. {each}")
    return NoCandidateError(f"No candidate can serve. {each}")


def _backoff() -> Iterator[float]:
    return (min(0.1 * 2**turn, _LONGEST_WAIT_S) for turn in itertools.count())
