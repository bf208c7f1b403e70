from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_STDERR = """
import argparse, logging, sys
from arcface_client.cli.bars import progress, stages
from arcface_client.cli.commandline import run

def command(arguments):
    logging.warning("a warning")
    with stages("r18") as tell:
        tell("Writing", None)
    print(sum(progress([1, 2], unit="crop")))
    print("an aside", file=sys.stderr)
    return 0

def parser():
    made = argparse.ArgumentParser()
    made.set_defaults(run=command)
    return made

sys.exit(run("command", parser, []))
"""


def test_a_command_works_with_standard_error_closed() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", WITHOUT_STDERR],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "3\n")


PROGRAM = """
import argparse, subprocess, sys
from arcface_client.cli.commandline import run

def parser():
    made = argparse.ArgumentParser(prog="command")
    made.set_defaults(run=lambda arguments: BODY or 0)
    return made

sys.exit(run("command", parser))
"""

UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
LENGTHS = pytest.mark.parametrize("length", [1, 100_000], ids=["a line", "more than a buffer"])


def program(body: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("BODY", body), *arguments]


def environment(unbuffered: str, **more: str) -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": unbuffered} | more


@UNBUFFERED
@LENGTHS
def test_a_reader_that_goes_away_is_no_traceback(length: int, unbuffered: str) -> None:
    command = program(f"print('x' * {length})")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(unbuffered)
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=20) == 1
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == ""


def test_a_pipe_of_the_commands_own_that_breaks_is_told() -> None:
    body = "(_ for _ in ()).throw(BrokenPipeError(32, 'Broken pipe'))"
    done = subprocess.run(program(body), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "command: Broken pipe\n")


@UNBUFFERED
@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("print('x')", []),
        ("print('x' * 100_000)", []),
        ("print('x')", ["--help"]),
    ],
)
def test_a_full_disk_under_standard_output_is_not_blamed_on_another(
    body: str, arguments: list[str], unbuffered: str
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            program(body, *arguments),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(unbuffered),
        )
    assert (done.returncode, done.stderr) == (
        1,
        "command: No space left on device (standard output)\n",
    )


@UNBUFFERED
def test_a_pipe_that_is_full_and_does_not_block_is_told(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        done = subprocess.run(
            program("print('x' * 1_000_000)"),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(unbuffered),
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stderr) == (
        1,
        "command: Resource temporarily unavailable (standard output)\n",
    )


@UNBUFFERED
def test_an_error_comes_after_what_was_printed_before_it(unbuffered: str) -> None:
    body = "print('before', flush=False) or open('/nowhere')"
    done = subprocess.run(
        program(body),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(unbuffered),
    )
    assert done.stdout == "before\ncommand: No such file or directory (/nowhere)\n"


def test_what_the_caller_prints_before_and_afterwards_keeps_its_place() -> None:
    body = PROGRAM.replace("BODY", "print('within')").replace(
        'sys.exit(run("command", parser))', "print('before'); run('command', parser); print('after')"
    )
    done = subprocess.run([sys.executable, "-c", body], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "before\nwithin\nafter\n"


@UNBUFFERED
def test_letters_are_those_of_the_streams_encoding(unbuffered: str) -> None:
    done = subprocess.run(
        program("print('Gr\u00fc\u00dfe')"),
        stdout=subprocess.PIPE,
        env=environment(unbuffered, PYTHONIOENCODING="latin-1"),
    )
    assert done.stdout == "Grüße\n".encode("latin-1")


@UNBUFFERED
def test_lines_are_out_before_another_process_writes(unbuffered: str) -> None:
    body = "print('first') or subprocess.run(['echo', 'second']) and print('third')"
    controller, terminal = os.openpty()
    try:
        done = subprocess.run(program(body), stdout=terminal, env=environment(unbuffered))
        os.close(terminal)
        assert done.returncode == 0
        assert os.read(controller, 100).split() == [b"first", b"second", b"third"]
    finally:
        os.close(controller)


def test_a_command_works_with_standard_output_closed() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *program("print('x')")], stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
