"""How a command begins and ends: Ctrl-C while it imports what it needs, and what it leaves to its caller."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from arcface_client.cli.commandline import DONE, FAILED, INTERRUPTED, run
from arcface_client.cli.starting import run_command
from arcface_client.errors import MissingExtraError

STARTING = """
import sys
from importlib import import_module

package, waited_for = sys.argv[1:]
main = import_module(f"{package}.__main__").main

class Waiting:
    def find_spec(self, name, path=None, target=None):
        if name == waited_for:
            print("imports", flush=True)
            sys.stdin.read()

sys.meta_path.insert(0, Waiting())
sys.argv = [package, "--help"]
sys.exit(main())
"""
"""A command whose import of one module lasts until its standard input ends."""


@pytest.mark.parametrize("module", ["argparse", "arcface_client.errors", "numpy"])
@pytest.mark.parametrize("package", ["arcface_builder", "arcface_client", "arcface_server"])
def test_ctrl_c_ends_a_command_that_is_just_starting_without_a_traceback(package: str, module: str) -> None:
    command = [sys.executable, "-c", STARTING, package, module]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "imports\n"
        child.send_signal(signal.SIGINT)
        child.wait(60)  # its standard input is open still: nothing else ends it
        assert child.stderr is not None
        said = child.stderr.read()
    assert child.returncode in (-signal.SIGINT, INTERRUPTED)
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["builder", "client", "server"])
def test_a_command_is_its_package_run_as_a_module(command: str) -> None:
    run = [sys.executable, "-m", f"arcface_{command}", "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)

    assert done.stdout.startswith(f"usage: arcface-{command} ")


def parser_of(command: Callable[[argparse.Namespace], int]) -> Callable[[], argparse.ArgumentParser]:
    def parser() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        parser.set_defaults(run=command)
        return parser

    return parser


def test_a_program_that_calls_a_command_keeps_its_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["arcface-client", "--version"])
    before = signal.getsignal(signal.SIGINT)

    with pytest.raises(SystemExit) as ended:
        run_command("arcface_client.cli.app")

    assert ended.value.code == DONE
    assert signal.getsignal(signal.SIGINT) == before


def test_a_command_can_be_called_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["arcface-client", "--version"])
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run_command, "arcface_client.cli.app").exception()

    assert isinstance(ended, SystemExit)


def test_a_system_without_sighup_runs_commands_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")

    assert run("command", parser_of(lambda arguments: DONE), []) == DONE


def test_a_pipe_that_breaks_inside_is_no_reader_that_went_away(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(arguments: argparse.Namespace) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    assert run("command", parser_of(broken), []) == FAILED
    assert capsys.readouterr().err == "command: Broken pipe\n"


@pytest.mark.parametrize("error", [ImportError("not loaded"), MissingExtraError("not loaded")])
def test_ctrl_c_that_looks_like_a_failed_import_is_ctrl_c(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None
        return DONE

    assert run("command", parser_of(interrupted), []) == INTERRUPTED
    assert capsys.readouterr().err == "command: interrupted\n"


def test_an_import_that_fails_without_ctrl_c_keeps_its_traceback() -> None:
    def parser() -> argparse.ArgumentParser:
        raise ImportError("a bug")

    with pytest.raises(ImportError, match="a bug"):
        run("command", parser, [])
