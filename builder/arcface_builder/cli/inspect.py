"""``arcface-builder inspect``: what an ONNX file is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from arcface_client.cli.commandline import DONE

from ..source.inspect import inspect


def add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    inspecting = commands.add_parser(
        "inspect",
        help="say what an ONNX file is and what a build would mend",
        description="Say what an ONNX file is, what its callers must do, and what a build would mend. "
        "What the graph does to the pixels is found by running it, not by its names.",
    )
    inspecting.add_argument("file", type=Path, metavar="FILE", help="an ONNX file; it is not changed")
    inspecting.add_argument("--json", action="store_true", help="print a JSON object")
    inspecting.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    inspection = inspect(arguments.file)
    print(json.dumps(inspection.to_dict(), indent=2) if arguments.json else inspection.to_text())
    return DONE
