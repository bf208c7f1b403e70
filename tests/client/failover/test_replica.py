"""For how long a replica that failed comes after all others."""

from __future__ import annotations

import pytest

from arcface_client.errors import InputError
from arcface_client.failover.replica import PEACE_S, Cooldown, Intervals

NEW = Cooldown(first_s=1, longest_s=8)


def test_three_failures_in_a_row_start_a_cooldown_and_a_success_between_them_does_not() -> None:
    cooldown = NEW
    for _ in range(5):
        cooldown = cooldown.failed(0, certain=False).failed(0, certain=False).succeeded()
    assert not cooldown.active(0)
    for _ in range(3):
        cooldown = cooldown.failed(0, certain=False)
    assert cooldown.active(0)


def test_a_certain_failure_and_one_during_a_cooldown_start_a_cooldown_at_once() -> None:
    cooldown = NEW.failed(0, certain=True)
    assert (cooldown.active(0.9), cooldown.active(1)) == (True, False)
    assert cooldown.failed(0.9, certain=False).active(2)


def test_it_doubles_with_every_failure_until_a_minute_of_peace() -> None:
    now, cooldown, waits = 0.0, NEW, list[float]()
    for _ in range(5):
        cooldown = cooldown.failed(now, certain=True)
        waits.append(cooldown.until - now)
        now = cooldown.until + PEACE_S - 1
    assert waits == [1, 2, 4, 8, 8]
    assert cooldown.failed(cooldown.until + PEACE_S, certain=True).wait_s == 1


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_an_interval_must_be_a_positive_number_of_seconds(value: float) -> None:
    with pytest.raises(InputError, match=f"recheck_s is {value}; expected a number of seconds above 0"):
        Intervals(recheck_s=value)
