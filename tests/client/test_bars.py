from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress

import pytest
from tqdm import tqdm

from arcface_client.cli import bars
from arcface_client.cli.bars import stages
from support.processes import wait_until


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def build(tell: Callable[[str, float | None], None]) -> None:
    tell("Writing the graph", None)
    for done in (0.0, 0.1, 0.2):
        tell("Optimizing", done)
        tell("Timing", done + 0.05)
    tell("Comparing", None)
    tell("Comparing", None)


def test_without_a_terminal_each_new_stage_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), stages("r18 fp16") as tell:
        build(tell)

    told = [re.fullmatch(r"r18 fp16: (.+) \(after \d+ s\)", line) for line in caplog.messages]
    assert [line and line[1] for line in told] == ["Writing the graph", "Optimizing", "Timing", "Comparing"]


def test_what_begins_anew_is_told_anew(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), stages("r18 fp16") as tell:
        build(tell)
        build(tell)

    assert len(caplog.messages) == 8


def test_on_a_terminal_stages_are_under_a_bar_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO), stages("r18 fp16") as tell:
        build(tell)

    assert "Comparing" in terminal.getvalue()
    assert caplog.messages == []


def is_refreshed() -> bool:
    return any(thread.name == "progress-refresh" for thread in threading.enumerate())


def is_cleared(shown: str) -> bool:
    """Whether the last that a terminal was shown is a bar's end."""
    return re.search(r"\r +\r$", shown) is not None


@contextmanager
def pseudo_terminal() -> Iterator[Callable[[], str]]:
    """A real terminal for standard error; yields what tells all that it has shown."""
    reading, writing = os.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    os.set_blocking(reading, False)
    shown = bytearray()

    def read() -> str:
        with suppress(BlockingIOError):
            shown.extend(os.read(reading, 65536))
        return shown.decode()

    with os.fdopen(writing, "w") as stderr, redirect_stderr(stderr):
        yield read
    os.close(reading)


def test_on_a_terminal_the_time_goes_on_during_a_stage_that_is_told_once() -> None:
    with pseudo_terminal() as shown:
        with stages("r18 int8") as tell:
            tell("Writing int8 into the graph", None)
            wait_until(lambda: "00:02 , Writing int8 into the graph" in shown())

        assert not is_refreshed()
        wait_until(lambda: is_cleared(shown()))


def test_what_is_interrupted_under_a_bar_leaves_nothing_that_draws() -> None:
    with pseudo_terminal() as shown:
        with pytest.raises(KeyboardInterrupt), stages("r18 int8") as tell:
            tell("Writing int8 into the graph", None)
            raise KeyboardInterrupt

        assert not is_refreshed()
        wait_until(lambda: is_cleared(shown()))


def test_without_a_terminal_nothing_is_drawn_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), stages("r18 int8") as tell:
        tell("Writing int8 into the graph", None)
        assert not is_refreshed()


class FailingTerminal(Terminal):
    """A terminal that cannot be written to for a while."""

    error: BaseException | None = None
    failures = 0

    def write(self, text: str) -> int:
        if self.error is not None:
            self.failures += 1
            raise self.error
        return super().write(text)


def test_a_terminal_that_cannot_be_written_to_fails_where_a_stage_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = FailingTerminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(bars, "_REFRESH_S", 0.01)
    with stages("r18 int8") as tell:
        terminal.error = BlockingIOError("nobody reads")
        wait_until(lambda: terminal.failures > 1)  # in the background, and it goes on
        with pytest.raises(BlockingIOError):
            tell("Writing int8 into the graph", None)
        terminal.error = None


def test_ctrl_c_as_a_stage_is_drawn_leaves_the_bars_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FailingTerminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with stages("r18 int8") as tell:
        terminal.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            tell("Writing int8 into the graph", None)
        terminal.error = None
    free = threading.Event()

    def draw() -> None:
        with tqdm.get_lock():  # type: ignore[no-untyped-call]
            free.set()

    threading.Thread(target=draw, daemon=True).start()
    assert free.wait(20)


def test_bars_that_stay_locked_do_not_keep_the_end_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, lock = threading.Event(), threading.RLock()

    class Lock:
        def acquire(self) -> None:
            if not lock.acquire(blocking=False):
                wanted.set()
                lock.acquire()

        def release(self) -> None:
            lock.release()

        def __enter__(self) -> None:
            self.acquire()

        def __exit__(self, *_: object) -> None:
            self.release()

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(bars, "_REFRESH_S", 0.01)
    monkeypatch.setattr(tqdm, "_lock", Lock(), raising=False)
    with stages("r18 int8") as tell:
        tell("Writing int8 into the graph", None)
        lock.acquire()  # as Ctrl-C in tqdm's own `refresh` leaves it
        assert wanted.wait(20)
    shown = terminal.getvalue()

    lock.release()
    wait_until(lambda: not is_refreshed())
    assert terminal.getvalue() == shown
