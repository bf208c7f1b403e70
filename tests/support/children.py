"""Python in processes of their own, which may be killed or starved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

_STEPS: Final = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
    "http.client.send",
}


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python code that can import what tests import; the arguments are in ``sys.argv``."""
    folders = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def run(code: str, *arguments: object) -> str:
    """Run Python code to its end, and return what it printed."""
    with start(code, *arguments) as child:
        printed, _ = child.communicate()
    return printed


def die_at(step: int, number: int = signal.SIGKILL) -> None:
    """Let this process get a signal at one of its next steps on the disk or the network, counted from 0."""

    def count(event: str, _: object) -> None:
        nonlocal step
        if event in _STEPS:
            step -= 1
            if step == -1:
                os.kill(os.getpid(), number)

    sys.addaudithook(count)
