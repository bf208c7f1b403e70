from __future__ import annotations

import threading

import pytest

from arcface_client.selection.watcher import Repeater
from processes import wait_until


def test_an_error_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def fail_at_first() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("nobody expected this")

    repeater = Repeater(fail_at_first, 0.01, "arcface-test")
    wait_until(lambda: len(calls) >= 3)
    repeater.close(5)
    assert "arcface-test failed; it goes on" in caplog.text
    assert "nobody expected this" in caplog.text
    assert not any(thread.name == "arcface-test" for thread in threading.enumerate())


def test_the_thread_does_not_keep_a_program_from_ending() -> None:
    repeater = Repeater(lambda: None, 60, "arcface-daemon")
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "arcface-daemon")
    assert thread.daemon
    repeater.close(5)
    assert not thread.is_alive()
