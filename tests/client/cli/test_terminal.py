"""How every command runs and ends, on the shared runner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from arcface_client.cli import terminal
from arcface_client.errors import InputError

PROGRAM = """
import sys
from arcface_client.cli.terminal import new_app, progress, rate_of, run
app = new_app("Help.", epilog="")
@app.command()
def work() -> None:
    BODY
@app.command()
def rest() -> None:
    pass
sys.exit(run(app, "command", sys.argv[1:]))
"""


def program(body: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("BODY", body), "work"]


def run(work: Callable[[], int | None], *arguments: str) -> int:
    """Run a command line that has the command "work"."""
    app = terminal.new_app("Work on things.", epilog=terminal.examples("command work", "command rest"))
    app.command("work")(work)
    app.command("rest")(lambda: None)
    return terminal.run(app, "command", arguments or ["work"])


def raising(error: BaseException) -> Callable[[], int | None]:
    def work() -> int | None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("x is 3; expected 4."), "command: x is 3; expected 4.\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/a/b"),
            "command: No such file or directory: /a/b\n",
        ),
        (InputError("a long line, " * 50 + "end"), "command: " + "a long line, " * 50 + "end\n"),
    ],
)
def test_an_expected_error_is_one_line_and_exit_code_1(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == 1
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["play"], "No such command 'play'"),
        (["work", "--fast"], "No such option: --fast"),
        (["work", "more"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_how_to_get_help(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda: 0, *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "--help" in errors


def test_help_shows_the_examples_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: 0, "--help") == 0
    text = capsys.readouterr().out
    assert "bool" not in text
    lines = [line.strip() for line in text.splitlines()]
    assert lines.index("command work") < lines.index("command rest")
    assert "Work on things." in lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_after_it_has_tidied_up(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    tidied = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            tidied.append(True)

    assert run(work) == 130
    assert tidied == [True]
    assert capsys.readouterr().err == "command: interrupted\n"


@pytest.mark.parametrize("length", [1, 100_000], ids=["a line", "more than a buffer"])
def test_a_reader_that_goes_away_ends_the_command_quietly(length: int) -> None:
    process = subprocess.Popen(
        program(f"print('x' * {length})"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait(timeout=20) == 1


def test_progress_without_a_terminal_is_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress("r18") as report:
        report("converting", None)
        report("building", 0.1)
        report("building", 0.2)
    assert capsys.readouterr().err == "r18: converting (after 0 s)\nr18: building, 10% (after 0 s)\n"


def test_a_rate_without_a_terminal_is_a_line_now_and_then_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 1.0, 2.0, 61.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    with terminal.rate_of("embed") as show:
        show(128, None)
        show(256, None)
        show(6128, 12_128)
    assert capsys.readouterr().err == ("embed: 128 crops\nembed: 6,128 of 12,128 crops (100/s, 60 s left)\n")


def test_progress_on_a_terminal_is_a_bar_with_log_lines_above_it() -> None:
    body = (
        "import logging\n    with progress('r18') as report:\n"
        "        report('building', 0.5)\n        logging.warning('a log line')\n"
        "    with rate_of('embed') as show:\n        show(0, None)\n        show(1000, 4000)"
    )
    controller, terminal = os.openpty()
    try:
        done = subprocess.run(program(body), stderr=terminal, env=os.environ | {"TERM": "xterm"})
        os.close(terminal)
        shown = os.read(controller, 10_000).decode()
    finally:
        os.close(controller)
    assert done.returncode == 0
    assert "r18: building" in shown
    assert "50%" in shown
    assert "a log line" in shown
    assert "embed" in shown
    assert "1000/4000" in shown


def test_log_lines_are_plain_sentences() -> None:
    body = "import logging\n    logging.info('A step.')\n    logging.warning('Something is missing.')"
    done = subprocess.run(program(body), capture_output=True, text=True, check=True)
    assert done.stderr == "A step.\nWarning: Something is missing.\n"


def test_a_table_that_goes_into_a_file_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_table(["plan", "state"], [["a" * 100, "ready"], ["b", None]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["plan", "state"], ["a" * 100, "ready"], ["b", "-"]]
