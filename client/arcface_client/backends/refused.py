"""Which candidates failed, with what, and how long each is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import DeploymentError, detached
from ..observability.served import Refusal
from .local_model import LocalCandidate

WAIT_S: Final = 60.0
"""How long a candidate is left alone after its first failure, in seconds."""

LONGEST_WAIT_S: Final = 1800.0
"""The wait doubles with every further failure, up to this, in seconds."""


@dataclass(frozen=True)
class Failure:
    """A candidate's failure.

    Attributes:
        error: What it failed with.
        wait_s: How long it is left alone, in seconds.
        until_s: When that is over, by the clock.
    """

    error: DeploymentError
    wait_s: float
    until_s: float


class Refused:
    """The candidates that failed. One thread at a time may change it, any may read it.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: Mapping[LocalCandidate, Failure] = {}  # replaced, never changed

    def add(self, candidate: LocalCandidate, error: DeploymentError) -> None:
        """Note that a candidate failed."""
        before = self._failures.get(candidate)
        wait_s = WAIT_S if before is None else min(2 * before.wait_s, LONGEST_WAIT_S)
        failure = Failure(detached(error), wait_s, self._clock() + wait_s)
        self._failures = {**self._failures, candidate: failure}

    def remove(self, candidate: LocalCandidate) -> None:
        """Note that a candidate can be used."""
        self._failures = {other: failure for other, failure in self._failures.items() if other != candidate}

    def errors(self) -> Mapping[LocalCandidate, DeploymentError]:
        """What each failed with."""
        return {candidate: failure.error for candidate, failure in self._failures.items()}

    def is_left_alone(self, candidate: LocalCandidate) -> bool:
        """Whether it failed, and its wait is not over."""
        failure = self._failures.get(candidate)
        return failure is not None and self._clock() < failure.until_s

    def is_due(self, candidate: LocalCandidate) -> bool:
        """Whether it failed, and may be tried again."""
        return candidate in self._failures and not self.is_left_alone(candidate)

    def refusals(
        self,
        preferred: Sequence[LocalCandidate],
        failed: Mapping[LocalCandidate, DeploymentError],
    ) -> tuple[Refusal, ...]:
        """Why candidates did not serve a call, in which some of them failed."""
        errors = {**self.errors(), **failed}
        return tuple(
            Refusal(candidate.name, str(errors[candidate])) for candidate in preferred if candidate in errors
        )

    def all_failed(self) -> DeploymentError:
        """The error to raise when nobody is left."""
        errors = self.errors()
        if len(errors) == 1:
            return detached(next(iter(errors.values())))
        reasons = "; ".join(f"{candidate.name}: {error}" for candidate, error in errors.items())
        return DeploymentError(f"Nothing can embed in this process. {reasons}")
