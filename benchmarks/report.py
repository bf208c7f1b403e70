"""What the benchmarks share: their options, and the page and the data that they write."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def new_parser(description: str | None, *, depth: str, turns: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks on a CPU have, and these defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", default=depth, choices=["r18", "r34", "r50", "r100"])
    parser.add_argument("--turns", type=int, default=turns, help="alternating turns (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the page and the data")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """Read a list of whole numbers: "1,8,32"."""
    return tuple(map(int, text.split(",")))


def origin(arguments: argparse.Namespace) -> dict[str, str]:
    """The first entries of a report: the command, which can be run again, and the machine."""
    flags = [f"--{name} {value}" for name, value in vars(arguments).items() if name != "output"]
    command = " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *flags])
    return {"command": command, "machine": machine()}


def machine() -> str:
    """The processor's name, the system and Python's version."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def publish(name: str, report: Mapping[str, Any], page: str, folder: Path | None) -> None:
    """Print the page, and write it and its data to the folder, if there is one."""
    print(page)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
        (folder / f"{name}.md").write_text(page)


def network(depth: str) -> str:
    """The network's name in a page."""
    return f"IResNet-{depth.removeprefix('r')}"


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
