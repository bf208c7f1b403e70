"""Python in processes of their own, which may be killed or starved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
