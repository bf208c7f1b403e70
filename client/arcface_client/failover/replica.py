"""A replica: one way to embed, on a server or in this process, and what is known of it at this moment."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ..errors import ArcFaceError, InputError, detached
from ..models.embedding_space import EmbeddingSpace
from ..observability.diagnostics import HERE
from ..triton.embed_request import Deadline
from .golden_check import Finding, Model

FAILURES: Final = 3
"""Failures in a row that put a replica into cooldown, where a single one leaves a doubt."""

PEACE_S: Final = 60.0
"""Seconds after a cooldown in which another failure doubles it."""

LOCAL_COOLDOWN_S: Final = 60.0
LONGEST_LOCAL_COOLDOWN_S: Final = 1800.0
"""Loading a model costs more than asking a server, and what it needs is rarely there a second later."""


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


@dataclass(frozen=True)
class Origin:
    """Where a replica's model comes from.

    Attributes:
        name: The replica's name, for example "arcface_r100_trt:3 at localhost:8001".
        open: Gets a model of an embedding space (None: of any) ready by a deadline, or raises an
            ArcFaceError; the model has yet to pass the golden check.
        where: ``host:port`` of its server, or "this process".
        calls: How many calls its server has under way.
    """

    name: str
    open: Callable[[EmbeddingSpace | None, Deadline], Model] = field(repr=False)
    where: str = HERE
    calls: Callable[[], int] = field(default=lambda: 0, repr=False)


@dataclass(frozen=True)
class Cooldown:
    """How long a replica that failed comes after all others, in seconds of ``time.monotonic``.

    Attributes:
        first_s: Length of the first cooldown.
        longest_s: It doubles with every failure soon after the last one, up to this.
        failures: Failures in a row since the last cooldown.
        wait_s: Length of the last cooldown.
        until: When it ends.
    """

    first_s: float
    longest_s: float
    failures: int = 0
    wait_s: float = 0.0
    until: float = -math.inf

    def active(self, now: float) -> bool:
        """Whether the replica is in cooldown."""
        return now < self.until

    def failed(self, now: float, *, certain: bool) -> Cooldown:
        """Count a failure; ``certain`` when the next call would certainly fail, too."""
        failures = self.failures + 1
        if not (certain or self.active(now) or failures >= FAILURES):
            return replace(self, failures=failures)
        again = now < self.until + PEACE_S
        wait_s = min(2 * self.wait_s, self.longest_s) if again else self.first_s
        return replace(self, failures=0, wait_s=wait_s, until=now + wait_s)

    def ended(self, now: float) -> Cooldown:
        """End it early."""
        return replace(self, until=now) if self.active(now) else self

    def succeeded(self) -> Cooldown:
        """A call succeeded: the next failure is the first in a row."""
        return replace(self, failures=0) if self.failures else self


@dataclass(frozen=True, kw_only=True, eq=False)
class Replica:
    """What is known of one replica. It is replaced when that changes.

    Attributes:
        origin: Where its model comes from.
        preference: What to sort replicas by; the lowest is used first.
        release: What to sort replicas by for the golden check; the lowest settles the embedding space.
        share: Of a canary: the share of the calls that it gets first.
        cooldown: Whether it failed lately.
        model: The model, while it may serve; None before its golden check and after a failure.
        finding: What its last golden check found; None when it did not end.
        error: Why it may not serve; None when nothing is known against it.
        check_at: When the next golden check is due, on the clock of ``time.monotonic``; infinite while its
            server does not list it as ready.
        held: Whether it stays out until ``ensure_ready``.
    """

    origin: Origin
    preference: tuple[int, ...]
    release: tuple[int, ...] = ()
    share: float = 0.0
    cooldown: Cooldown
    model: Model | None = field(default=None, repr=False)
    finding: Finding | None = field(default=None, repr=False)
    error: ArcFaceError | None = None
    check_at: float = -math.inf
    held: bool = False

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self.origin.name

    @property
    def is_local(self) -> bool:
        """Whether its model runs in this process."""
        return self.origin.where == HERE

    def is_due(self, *, afresh: bool) -> bool:
        """Whether to check it now; with ``afresh`` also if it failed a moment ago."""
        is_retried = afresh and self.model is None and self.check_at < math.inf
        return not self.held and (is_retried or time.monotonic() >= self.check_at)

    def listed(self) -> Replica:
        """Its server lists it as ready: check it, if it was away."""
        is_new = self.model is None and self.check_at == math.inf
        return replace(self, check_at=-math.inf) if is_new else self

    def out(self, error: ArcFaceError, now: float, *, check_at: float = -math.inf) -> Replica:
        """Take it out of service."""
        cooldown = self.cooldown
        # A server that is away for an hour has failed once; a failed attempt to load is a failure each time.
        if self.model is not None or self.is_local:
            cooldown = cooldown.failed(now, certain=True)
        return replace(
            self, model=None, finding=None, error=detached(error), cooldown=cooldown, check_at=check_at
        )

    def failed(self, error: ArcFaceError, now: float, *, certain: bool) -> Replica:
        """A call failed."""
        cooldown = self.cooldown.failed(now, certain=certain)
        if cooldown.active(now):
            # Whatever comes back has to pass the golden check again.
            return replace(self, model=None, error=detached(error), cooldown=cooldown, check_at=-math.inf)
        return replace(self, cooldown=cooldown)

    def passed(self, model: Model, finding: Finding, now: float, intervals: Intervals) -> Replica:
        """It passed the golden check. A model in this process does not change and needs no other."""
        again = math.inf if self.is_local else now + intervals.prove_again_s
        return replace(self, model=model, finding=finding, error=None, check_at=again)


def local_replicas(origins: Sequence[Origin]) -> list[Replica]:
    """Replicas in this process, by preference; they come after all servers'."""
    return [
        Replica(
            origin=origin,
            preference=(sys.maxsize, place),
            cooldown=Cooldown(LOCAL_COOLDOWN_S, LONGEST_LOCAL_COOLDOWN_S),
        )
        for place, origin in enumerate(origins)
    ]
