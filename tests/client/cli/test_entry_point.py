"""How the three commands begin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def command(package: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", package, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("package", ["arcface_builder", "arcface_client", "arcface_server"])
def test_a_command_is_its_package_run_as_a_module(package: str) -> None:
    done = command(package, "--help")
    assert done.returncode == 0
    assert f"sage: {package.replace('_', '-')} " in done.stdout


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(name='typer')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = command("arcface_client", "status", PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (
        1,
        "arcface-client needs the package typer: pip install 'arcface-triton[cli]'\n",
    )
