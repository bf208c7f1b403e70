from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from arcface_client.failover.repeater import Repeater
from support.processes import wait_until


class Owner:
    """Counts calls of its method, each of which may do something."""

    def __init__(self, act: Callable[[int], None] = lambda calls: None) -> None:
        self.calls = 0
        self._act = act

    def work(self) -> None:
        self.calls += 1
        self._act(self.calls)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "arcface-test"]


@contextmanager
def repeating(owner: Owner, interval_s: float) -> Iterator[threading.Thread]:
    repeater = Repeater(owner.work, interval_s, "arcface-test")
    (thread,) = threads()
    yield thread
    repeater.close(5)
    assert not thread.is_alive()


def test_an_error_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def fail_at_first(calls: int) -> None:
        if calls == 1:
            raise RuntimeError("nobody expected this")

    owner = Owner(fail_at_first)
    with repeating(owner, 0.01):
        wait_until(lambda: owner.calls >= 3)
    assert "arcface-test failed; it goes on" in caplog.text
    assert "nobody expected this" in caplog.text


def test_the_thread_does_not_keep_a_program_from_ending() -> None:
    owner = Owner()
    with repeating(owner, 60) as thread:
        assert thread.daemon


def test_the_thread_ends_with_the_object_that_it_works_for() -> None:
    owners = [Owner()]
    repeater = Repeater(owners[0].work, 0.01, "arcface-test")
    wait_until(lambda: owners[0].calls >= 1)
    owners.clear()
    wait_until(lambda: not threads())
    repeater.close(5)
