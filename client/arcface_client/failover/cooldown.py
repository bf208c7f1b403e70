"""A circuit breaker: leaves a candidate alone that fails, and takes it back with care."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from .intervals import BreakerLimits

State = Literal["closed", "open", "half-open"]


class Breaker:
    """The state of one candidate.

    closed
        It serves. Failures in a row, or one that leaves no doubt, open it.
    open
        It is not used. After a wait it is probed; a good probe half-opens it.
    half-open
        It is settling: used only where nobody better is left. It closes when probes have been good for a
        while, and opens at the first failure.

    Not thread-safe: its owner holds a lock.

    Args:
        limits: When it changes its state.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, limits: BreakerLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.state: State = "closed"
        self._limits = limits or BreakerLimits()
        self._clock = clock
        self._failures = 0
        self._wait_s = 0.0
        self._since = clock()

    def failed(self, *, certain: bool = False) -> None:
        """A call failed; ``certain`` when no further one is needed to know."""
        self._failures += 1
        if self.state == "half-open" or (
            self.state == "closed" and (certain or self._failures >= self._limits.failures)
        ):
            at_peace = self.state == "closed" and self._elapsed() >= self._limits.peace_s
            relapse = 0.0 if at_peace else 2 * self._wait_s
            self._wait_s = min(max(relapse, self._limits.wait_s), self._limits.longest_wait_s)
            self._enter("open")

    def succeeded(self) -> None:
        """A call succeeded."""
        self._failures = 0

    @property
    def has_settled(self) -> bool:
        """Whether a good probe now would close it."""
        return self.state == "half-open" and self._elapsed() >= self._limits.settle_s

    @property
    def due(self) -> bool:
        """Whether it is open and may be probed."""
        return self.state == "open" and self._elapsed() >= self._wait_s

    def probed(self, *, good: bool) -> None:
        """A probe, apart from the calls, showed whether it could serve."""
        if self.state == "open":
            self._enter("half-open" if good else "open")
        elif self.state == "half-open" and not good:
            self.failed()
        elif self.has_settled:
            self._enter("closed")

    def _elapsed(self) -> float:
        return self._clock() - self._since

    def _enter(self, state: State) -> None:
        self.state = state
        self._since = self._clock()
        self._failures = 0
