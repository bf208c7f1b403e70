"""Ctrl-C while a command is still importing what it needs."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

import pytest

from arcface_client.commandline import DONE, INTERRUPTED, run
from arcface_client.errors import MissingExtraError


@pytest.mark.parametrize("module", ["argparse", "arcface_client.errors", "numpy"])
@pytest.mark.parametrize("package", ["arcface_builder", "arcface_client", "arcface_server"])
def test_ctrl_c_ends_a_command_that_is_just_starting_without_a_traceback(package: str, module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", package, "--help"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        lines = iter(child.stderr.readline, "")  # one for each module, once it is imported
        assert any(line.rpartition("|")[2].strip() == module for line in lines)
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
    assert child.returncode in (-signal.SIGINT, INTERRUPTED)
    assert "Traceback" not in rest


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

    def parser() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        parser.set_defaults(run=interrupted)
        return parser

    assert run("command", parser, []) == INTERRUPTED
    assert capsys.readouterr().err == "command: interrupted\n"


def test_an_import_that_fails_without_ctrl_c_keeps_its_traceback() -> None:
    def parser() -> argparse.ArgumentParser:
        raise ImportError("a bug")

    with pytest.raises(ImportError, match="a bug"):
        run("command", parser, [])
