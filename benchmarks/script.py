"""What the scripts of this folder share: their flags, and the JSON file that report.py reads."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from arcface_client.evaluation.benchmark import machine
from arcface_client.evaluation.report import versions
from report import FOLDER

COMMAND = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def usual_flags(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the flags of every script."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", default="r50", choices=["r18", "r34", "r50", "r100"])
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder (default: docs/benchmarks)")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """Read a list of whole numbers: "1,8,32"."""
    return tuple(map(int, text.split(",")))


def network(depth: str) -> str:
    """The network's name in a page."""
    return f"IResNet-{depth.removeprefix('r')}"


def write(folder: Path, name: str, **found: Any) -> None:
    """Write what was found, with the command, the machine and the versions."""
    about = {"command": COMMAND, "machine": machine(), "versions": versions(None)}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(about | found, indent=1) + "\n")
    print(path)
