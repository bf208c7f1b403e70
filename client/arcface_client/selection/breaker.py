"""A circuit breaker: leaves a candidate alone that fails, and takes it back with care."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, kw_only=True)
class BreakerLimits:
    """When a breaker changes its state.

    Attributes:
        failures: Failures in a row that open it.
        wait_s: Seconds that it stays open before the first probe, after a time of peace.
        longest_wait_s: The wait doubles with every relapse, up to this.
        settle_s: Seconds that it is half-open before a good probe closes it.
        peace_s: Seconds closed after which a failure is no relapse.
    """

    failures: int = 3
    wait_s: float = 1.0
    longest_wait_s: float = 60.0
    settle_s: float = 5.0
    peace_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.failures >= 1:
            raise InputError(f"failures is {self.failures}; expected 1 or more.")
        check_seconds(self)
        if self.longest_wait_s < self.wait_s:
            raise InputError(
                f"longest_wait_s is {self.longest_wait_s}; expected {self.wait_s} or more, as wait_s is."
            )


def check_seconds(limits: Any) -> None:
    """Check the fields of a dataclass that are seconds.

    Raises:
        InputError: One of them is not above 0, or no number.
    """
    for name, value in vars(limits).items():
        if name.endswith("_s") and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; expected a number of seconds above 0.")


class Breaker:
    """The state of one candidate.

    closed
        It serves. Failures in a row, or one that leaves no doubt, open it.
    open
        It is not used. After a wait it is probed; a good probe half-opens it.
    half-open
        It is settling: used only where nobody better is left. It closes when probes have been good for a
        while, and opens at the first failure.

    Whoever calls it sees to it that one thread at a time does.

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
