"""How often candidates are looked at, and when they are left alone: what an operator may set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError


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
        _check_seconds(self)
        if self.longest_wait_s < self.wait_s:
            raise InputError(
                f"longest_wait_s is {self.longest_wait_s}; expected {self.wait_s} or more, as wait_s is."
            )


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How often candidates are looked at, in seconds.

    Attributes:
        recheck_s: Between two looks at what the servers list.
        liveness_s: Between two questions to a server with calls under way whether it is alive, and how long
            it may take to answer.
        prove_again_s: Between two golden checks of a candidate that passed, or is of another identity.
        refused_again_s: Between two golden checks of one that did not pass, or not in time.
        examination_s: How long an examination of one may take.
        breaker: When a candidate is left alone, and taken back.
    """

    recheck_s: float = 2.0
    liveness_s: float = 1.0
    prove_again_s: float = 300.0
    refused_again_s: float = 30.0
    examination_s: float = 10.0
    breaker: BreakerLimits = field(default_factory=BreakerLimits)

    def __post_init__(self) -> None:
        _check_seconds(self)


def _check_seconds(limits: Any) -> None:
    """Check the fields of a dataclass that are seconds.

    Raises:
        InputError: One of them is not above 0, or no number.
    """
    for name, value in vars(limits).items():
        if name.endswith("_s") and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; expected a number of seconds above 0.")
