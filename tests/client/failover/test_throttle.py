from __future__ import annotations

from arcface_client.failover.throttle import Throttle


def test_the_same_thing_passes_once_in_an_interval_and_another_one_beside_it() -> None:
    now = 100.0
    throttle = Throttle(60.0, clock=lambda: now)
    assert throttle.passes("one")
    assert not throttle.passes("one")
    assert throttle.passes("other")
    now += 59.9
    assert not throttle.passes("one")
    now += 0.2
    assert throttle.passes("one")
    assert not throttle.passes("one")
