"""For how long a replica that failed comes after all others."""

from __future__ import annotations

import pytest

from arcface_client.errors import InputError
from arcface_client.failover.replica import PEACE_S, Cooldown, Intervals

NEW = Cooldown(first_s=1, longest_s=8)


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
