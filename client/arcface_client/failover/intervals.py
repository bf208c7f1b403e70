"""How often replicas are checked, and for how long a failed one rests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often replicas are checked, and for how long a failed one rests; all in seconds.

    Attributes:
        recheck_s: Between two questions to a server about its models.
        liveness_s: Between two questions whether a server with calls under way is alive, and how long it may
            take to answer.
        prove_again_s: Between two golden checks of a replica that passed.
        refused_again_s: Between two golden checks of a replica that did not pass, or not in time.
        check_s: How long the golden check of one replica may take.
        cooldown_s: How long a replica that failed comes after all others. It doubles with every failure
            within a minute of the last cooldown.
        longest_cooldown_s: The longest cooldown.
    """

    recheck_s: float = 2.0
    liveness_s: float = 1.0
    prove_again_s: float = 60.0
    refused_again_s: float = 30.0
    check_s: float = 10.0
    cooldown_s: float = 5.0
    longest_cooldown_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; expected a number of seconds above 0.")
