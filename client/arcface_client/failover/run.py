"""One call over the candidates: which are tried, what is tried again, and which does the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ..backends.last_resort import LastResort
from ..errors import (
    ArcFaceError,
    CallCancelledError,
    DeadlineExceededError,
    InputError,
    NoCandidateNowError,
    ServerBusyError,
    ServerError,
    detached,
)
from ..observability.metrics import Metrics
from ..observability.served import HERE, Served
from ..triton.embed_request import EmbedRequest
from ..triton.status import PROBE_TIMEOUT_S
from .attempt import Attempt
from .call import Call, nobody
from .pool import Selector
from .replica import Contender
from .throttle import Throttle

BUSY_WAITS_S: Final = (0.05, 0.1, 0.2)
"""Seconds between the tries of one candidate that is full, while it makes no headway."""

SILENCE_S: Final = 1.0
"""A candidate that uses up a call's time counts as failing when it was silent for so long, in seconds."""

FIRST_LOOK_S: Final = 2.0
"""How long a server may take to list its models when nobody else serves meanwhile, in seconds."""

LOG_INTERVAL_S: Final = 60.0
"""How often the log may say that a candidate left a call to the next for the same reason, in seconds."""

_THE_CALLERS: Final = (InputError, CallCancelledError)
"""Errors that no other candidate would do without."""

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 1.0

_log = logging.getLogger(__name__)


class Fallback:
    """Runs calls over a selection's ranking.

    - The caller's errors (``InputError``), and that he cancelled the call, are raised at once.
    - The moment's are tried again, then the next candidate is: a full queue a few times at once; a model that
      loads or unloads after the others, since its breaker opens and it has to be examined.
    - All others are the candidate's: the next one does what is missing.

    Args:
        selector: Which candidates may serve.
        last_resort: What serves when no candidate does; None where that is not allowed.
        metrics: Counts what happens.
        patience_s: How long a call waits without headway for what may soon be over, if it has no deadline.
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
        self._log_throttle = Throttle(LOG_INTERVAL_S)

    def run(self, job: EmbedRequest) -> Served:
        """Embed what a job misses, by whichever candidate can.

        Raises:
            InputError: The crops, or the embedder (closed), cannot be used.
            CallCancelledError: Nobody waits any more.
            DeadlineExceededError: The call's time is up.
            NoCandidateNowError: Nobody serves, but trying again may help.
            NoCandidateError: Nobody serves before something is mended.
        """
        call = Call(job, self._patience_s)
        wait_s, asked_again = _FIRST_WAIT_S, False
        if not self._selector.has_looked:
            self._look(call, timeout_s=FIRST_LOOK_S)
        while True:
            served = self._try_all(call)
            if served is not None:
                return served
            reasons = call.reasons(self._selector.standing.refused)
            patience_s = call.patience_s(reasons)
            # All of it may have gone to a server that hung, while another one came back: ask once at least.
            if call.stalled_s + wait_s > patience_s and (asked_again or not patience_s):
                raise nobody(reasons)
            if call.is_over:
                raise call.too_late(nobody(reasons))
            self._pause(min(wait_s, job.deadline.remaining_s()))
            self._look(call, afresh=True)
            asked_again = True
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _look(self, call: Call, *, afresh: bool = False, timeout_s: float = PROBE_TIMEOUT_S) -> None:
        try:
            self._selector.look(call.job.deadline, afresh=afresh, timeout_s=timeout_s)
        except DeadlineExceededError as error:
            reasons = call.reasons(self._selector.standing.refused)
            why = nobody(reasons) if reasons else NoCandidateNowError({})
            raise call.too_late(why) from error

    def _try_all(self, call: Call) -> Served | None:
        """Let everybody have a go at what is missing, by preference; None when some still is."""
        standing = self._selector.standing
        for contender in standing.ranking:
            # What another call met with meanwhile counts here, too.
            if contender.error is None and self._try(contender, call):
                preferred = standing.preferred_to(contender)
                return call.served(str(contender), standing.passed_over[contender], preferred)
        return None if self._last_resort is None else self._try_last_resort(self._last_resort, call)

    def _try(self, contender: Contender, call: Call) -> bool:
        """Let a candidate do what is missing; False when it did not all of it."""
        job, waits = call.job, iter(BUSY_WAITS_S)
        attempt = Attempt(contender, job)
        while True:
            source, missing, started = attempt.source, job.missing, time.monotonic()
            wait_s: float | None = None
            known: ArcFaceError | None = None
            try:
                known = attempt.work()
            except _THE_CALLERS:
                raise
            except ServerBusyError as error:
                wait_s = 0.0 if job.missing < missing else next(waits, None)
                failure: ArcFaceError = error
            except ArcFaceError as error:
                failure = error
            else:
                if known is None:
                    self._selector.succeeded(contender)
                    self._settle_suspicions(call, contender)
                    return True
                wait_s = 0.0 if contender.error is None else None  # It may have been proved again.
                failure = known
            finally:
                call.credit(source, missing - job.missing)
            if call.is_over:
                silent = job.missing == missing and time.monotonic() - started >= SILENCE_S
                if silent and known is None:
                    self._selector.failed(contender, failure)
                raise call.too_late(failure) from failure
            if wait_s is None:
                self._leave_to_the_next(contender, failure, call)
                if known is None:
                    self._blame(contender, failure, call)
                return False
            self._pause(min(wait_s, job.deadline.remaining_s()))

    def _leave_to_the_next(self, contender: Contender, error: ArcFaceError, call: Call) -> None:
        name, reason = str(contender), type(error).__name__
        call.failures[name] = detached(error)
        self._metrics.fell_back(reason)
        if self._log_throttle.passes((name, reason)):
            _log.warning("%s leaves a call to the next candidate: %s", name, error)

    def _blame(self, contender: Contender, error: ArcFaceError, call: Call) -> None:
        if isinstance(error, ServerError):
            # The crops may be at fault; if another candidate serves them, they were not.
            call.suspects.append((contender, detached(error)))
        elif not isinstance(error, ServerBusyError):
            self._selector.failed(contender, error)

    def _try_last_resort(self, last_resort: LastResort, call: Call) -> Served | None:
        if call.is_over:
            raise call.too_late(nobody(call.reasons(self._selector.standing.refused)))
        missing = call.job.missing
        try:
            served = last_resort.run(call.job)
        except _THE_CALLERS:
            raise
        except ArcFaceError as error:
            if last_resort.source is not None:
                call.credit(last_resort.source, missing - call.job.missing)
            if call.is_over:
                raise call.too_late(error) from error
            call.failures[HERE] = detached(error)
            return None
        for source in served.sources:
            call.credit(source, source.crops)
        self._metrics.fell_back("LastResort")
        self._settle_suspicions(call, None)
        return call.served(HERE, (*self._selector.standing.refusals, *served.refusals), call.failures)

    def _settle_suspicions(self, call: Call, by: Contender | None) -> None:
        """The crops were sound, since a candidate served them: those that failed on them have failed."""
        for contender, error in call.suspects:
            if contender is not by:
                self._selector.failed(contender, error)
