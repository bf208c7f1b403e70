"""What one call went through: which candidates embedded what, which failed, and how long to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Final

from ..errors import (
    ArcFaceError,
    DeadlineExceededError,
    ModelLoadingError,
    NoCandidateError,
    NoCandidateNowError,
    ServerBusyError,
    ServerError,
    TransientError,
)
from ..observability.served import Refusal, Served, Source
from ..triton.embed_request import EmbedRequest
from .replica import Contender

RECONNECT_S: Final = 1.0
"""How long a call without a deadline, unserved, keeps asking when every server is gone, in seconds."""

MARGIN_S: Final = 0.02
"""A request that is given the rest of a call's time may end this much before it."""


class Call:
    """What a call went through so far.

    Args:
        job: Its crops.
        patience_s: How long it waits without headway for what may soon be over, if it has no deadline.

    Attributes:
        failures: The candidates that failed in it, and with which error.
        suspects: The candidates that failed on crops which none has served since.
    """

    def __init__(self, job: EmbedRequest, patience_s: float) -> None:
        self.job = job
        self.failures: dict[str, ArcFaceError] = {}
        self.suspects: list[tuple[Contender, ServerError]] = []
        self._patience_s = patience_s
        self._moved_at = time.monotonic()
        self._credits: dict[Source, int] = {}

    @property
    def is_over(self) -> bool:
        """Whether the call's time is up, and not that of a request alone."""
        return self.job.deadline.is_over(MARGIN_S)

    @property
    def stalled_s(self) -> float:
        """Seconds since it made headway, or began."""
        return time.monotonic() - self._moved_at

    def credit(self, source: Source, crops: int) -> None:
        """Note how many crops a candidate embedded; a negative count means that so many are missing again."""
        if crops > 0:
            self._moved_at = time.monotonic()
        if crops:
            source = replace(source, crops=0)
            self._credits[source] = self._credits.get(source, 0) + crops

    def served(self, by: str, passed_over: Iterable[Refusal], preferred: Container[str]) -> Served:
        """The report on a call that is done.

        Args:
            by: The candidate that did the last of it.
            passed_over: Those that were known before to be out.
            preferred: Candidates preferred to it; the failure of any other is not reported as a refusal.
        """
        sources = tuple(replace(source, crops=crops) for source, crops in self._credits.items() if crops)
        reasons = {refusal.candidate: refusal.reason for refusal in passed_over}
        # A candidate that failed and then served after all is no refusal.
        reasons |= {
            name: str(error) for name, error in self.failures.items() if name in preferred and name != by
        }
        return Served(sources, tuple(Refusal(name, reason) for name, reason in reasons.items()))

    def too_late(self, error: ArcFaceError) -> DeadlineExceededError:
        """The error for a call whose time is up."""
        total, over = len(self.job.crops), self.job.deadline.spent_text
        why = "" if str(error) == f"{over}." else f" {error}"
        return DeadlineExceededError(
            f"{over}; {total - self.job.missing} of {total} crops are embedded.{why}"
        )

    def reasons(self, refused: Iterable[tuple[str, ArcFaceError]]) -> dict[str, ArcFaceError]:
        """Why nobody serves, by candidate: what this call met with, and what was known before."""
        # What is known is the newer: a server that was away may be back, with another model.
        return self.failures | dict(refused)

    def patience_s(self, reasons: Mapping[str, ArcFaceError]) -> float:
        """How long without headway the call still tries them all again."""
        if not any(isinstance(error, TransientError) for error in reasons.values()):
            return 0.0
        if math.isfinite(self.job.deadline.timeout_s):
            return math.inf  # The deadline says how long the caller wants to wait.
        if any(isinstance(error, (ServerBusyError, ModelLoadingError)) for error in reasons.values()):
            return self._patience_s
        # The server that did a part of it may be restarting, and its embeddings are worth the wait.
        return self._patience_s if any(self._credits.values()) else RECONNECT_S


def nobody(reasons: Mapping[str, ArcFaceError]) -> ArcFaceError:
    """The error that lists every candidate and why it did not serve."""
    if any(isinstance(error, TransientError) for error in reasons.values()):
        return NoCandidateNowError(reasons)
    return NoCandidateError(reasons)
