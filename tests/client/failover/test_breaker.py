from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcface_client.errors import InputError
from arcface_client.failover.cooldown import Breaker, State
from arcface_client.failover.intervals import BreakerLimits, Rhythm
from support.clock import Clock

LIMITS = BreakerLimits(failures=3, wait_s=1, longest_wait_s=8, settle_s=5, peace_s=60)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(LIMITS, clock)


def state(breaker: Breaker) -> State:
    """Its state; through a function, since a type checker takes an attribute to stay what it was."""
    return breaker.state


def outage(breaker: Breaker, clock: Clock) -> float:
    """Let it fail, and come back as soon as it may; how long it was left alone."""
    breaker.failed(certain=True)
    began = clock.now_s
    while not breaker.due:
        clock.now_s += 0.25
    left_alone_s = clock.now_s - began
    breaker.probed(good=True)
    assert state(breaker) == "half-open"
    clock.now_s += LIMITS.settle_s
    breaker.probed(good=True)
    assert state(breaker) == "closed"
    return left_alone_s


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert state(breaker) == "closed"
    for _ in range(3):
        breaker.failed()
    assert state(breaker) == "open"


def test_a_certain_failure_opens_it_at_once(breaker: Breaker) -> None:
    breaker.failed(certain=True)
    assert state(breaker) == "open"


def test_it_may_be_probed_after_its_wait_and_a_bad_probe_starts_the_wait_again(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed(certain=True)
    assert not breaker.due
    clock.now_s += 1
    assert breaker.due
    breaker.probed(good=False)
    assert not breaker.due
    clock.now_s += 1
    assert breaker.due


def test_it_closes_only_after_probes_were_good_for_a_while(breaker: Breaker, clock: Clock) -> None:
    breaker.failed(certain=True)
    clock.now_s += 1
    breaker.probed(good=True)
    clock.now_s += 4.9
    breaker.probed(good=True)
    assert state(breaker) == "half-open"
    clock.now_s += 0.1
    breaker.probed(good=True)
    assert state(breaker) == "closed"


@pytest.mark.parametrize("kind", ["call", "probe"])
def test_one_failure_while_it_settles_opens_it_again(breaker: Breaker, clock: Clock, kind: str) -> None:
    breaker.failed(certain=True)
    clock.now_s += 1
    breaker.probed(good=True)
    breaker.failed() if kind == "call" else breaker.probed(good=False)
    assert state(breaker) == "open"


def test_a_candidate_that_comes_and_goes_is_left_alone_longer_each_time(
    breaker: Breaker, clock: Clock
) -> None:
    assert [outage(breaker, clock) for _ in range(5)] == [1, 2, 4, 8, 8]


def test_after_a_time_of_peace_an_outage_is_the_first_again(breaker: Breaker, clock: Clock) -> None:
    outage(breaker, clock)
    assert outage(breaker, clock) == 2
    clock.now_s += LIMITS.peace_s
    assert outage(breaker, clock) == 1


@given(st.lists(st.sampled_from(["failed", "certain", "succeeded", "good", "bad", "wait"]), max_size=60))
def test_whatever_happens_an_open_breaker_is_due_within_its_longest_wait(events: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(LIMITS, clock)
    for event in events:
        before = breaker.state
        if event == "wait":
            clock.now_s += 1.5
        elif event == "succeeded":
            breaker.succeeded()
        elif event in ("good", "bad"):
            breaker.probed(good=event == "good")
        else:
            breaker.failed(certain=event == "certain")
        assert (before, breaker.state) != ("open", "closed")
    clock.now_s += LIMITS.longest_wait_s
    assert breaker.due == (breaker.state == "open")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"failures": 0}, "failures is 0; expected 1 or more"),
        ({"wait_s": 0.0}, "wait_s is 0.0; expected a number of seconds above 0"),
        ({"settle_s": float("nan")}, "settle_s is nan"),
        ({"peace_s": float("inf")}, "peace_s is inf"),
        ({"wait_s": 5.0, "longest_wait_s": 4.0}, "longest_wait_s is 4.0; expected 5.0 or more"),
    ],
)
def test_limits_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BreakerLimits(**settings)


@pytest.mark.parametrize(
    "name", ["recheck_s", "liveness_s", "prove_again_s", "refused_again_s", "examination_s"]
)
def test_a_rhythm_that_cannot_be_is_refused(name: str) -> None:
    settings: dict[str, Any] = {name: -1.0}
    with pytest.raises(InputError, match=f"{name} is -1.0; expected"):
        Rhythm(**settings)
