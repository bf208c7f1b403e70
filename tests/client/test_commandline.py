from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable

import pytest

from arcface_client.commandline import stages


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
