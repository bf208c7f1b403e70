"""Serving against running in process: InsightFace, ONNX Runtime and this client through Triton.

All rivals take turns on the same machine, each in a process of its own. A figure is the median of its
turns. A ratio is the median of the ratios within a turn, so that a slow moment of the machine affects both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from arcface_builder.build import build
from arcface_builder.source.load import Synthetic
from arcface_server import LocalTriton
from workers import Worker, insightface, onnxruntime, triton

INSIGHTFACE: Final = "InsightFace get_feat"
ONNXRUNTIME: Final = "ONNX Runtime in process"
TRITON: Final = "this client through Triton"
TURN_S: Final = 2.0
"""About how long one rival's turn takes."""


@dataclass(frozen=True)
class Row:
    """One rival at one batch size."""

    rival: str
    batch: int
    faces_per_s: float
    ratio: float
    """Speed relative to the rival that all are compared with, in the same turn."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", default="r50", choices=["r18", "r34", "r50", "r100"])
    parser.add_argument("--batches", default="1,8,32", help="batch sizes (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="turns of each rival (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for serving.json and serving.md")
    arguments = parser.parse_args()
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = Synthetic(arguments.depth)
        source.load().save(folder / "source.onnx")
        built = build(source, name="arcface", repository=folder / "repository")
        with ExitStack() as stack:
            server = stack.enter_context(LocalTriton(folder / "repository"))
            rivals = {
                INSIGHTFACE: stack.enter_context(Worker(insightface, str(folder / "source.onnx"))),
                ONNXRUNTIME: stack.enter_context(Worker(onnxruntime, str(built.path / "model.onnx"))),
                TRITON: stack.enter_context(Worker(triton, server.grpc_url, built.model)),
            }
            batches = [int(text) for text in arguments.batches.split(",")]
            rows = measure(rivals, batches, arguments.turns)

    command = f"python benchmarks/serving.py --depth {arguments.depth} --batches {arguments.batches}"
    command += f" --turns {arguments.turns}"
    table = markdown(rows)
    print(table)
    if arguments.output:
        report = {"command": command, "machine": machine(), "rows": [asdict(row) for row in rows]}
        (arguments.output / "serving.json").write_text(json.dumps(report, indent=2) + "\n")
        (arguments.output / "serving.md").write_text(page(arguments.depth, command, table))


def measure(
    rivals: Mapping[str, Worker], batches: Sequence[int], turns: int, base: str = ONNXRUNTIME
) -> list[Row]:
    """Let the rivals take turns at every batch size; ratios are to the rival ``base``."""
    rows: list[Row] = []
    for batch in batches:
        repeats = max(1, round(TURN_S / rivals[base].seconds(batch, 1)))
        speeds: dict[str, list[float]] = {name: [] for name in rivals}
        names = list(rivals)
        for turn in track(range(turns), "turns", console=Console(stderr=True)):
            # The order rotates, so that no rival always follows the same one.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                speeds[name].append(batch * repeats / rivals[name].seconds(batch, repeats))
        for name in rivals:
            ratios = [own / base for own, base in zip(speeds[name], speeds[base], strict=True)]
            rows.append(Row(name, batch, statistics.median(speeds[name]), statistics.median(ratios)))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table: a row for each rival, a column for each batch size, faces per second and the ratio."""
    batches = sorted({row.batch for row in rows})
    lines = [
        "| | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---|" + "---|" * len(batches),
    ]
    for rival in dict.fromkeys(row.rival for row in rows):
        cells = [row for batch in batches for row in rows if (row.rival, row.batch) == (rival, batch)]
        texts = [f"{cell.faces_per_s:.1f}/s ({cell.ratio:.3f})" for cell in cells]
        lines.append(f"| {rival} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def page(depth: str, command: str, table: str) -> str:
    """The page for the documentation."""
    network = f"IResNet-{depth.removeprefix('r')}"
    return f"""# Serving against running in process

{network} with synthetic weights, faces a second, and in brackets the ratio to ONNX Runtime in process.
Medians of alternating turns in one run, each rival in a process of its own, one call at a time.

{table}

Machine: {machine()}. Absolute figures are this machine's; the ratios are what to compare.

Made by `{command} --output docs/benchmarks` (`make bench`); the same as data: [serving.json](serving.json).
"""


def machine() -> str:
    """The processor's name, the system and Python's version."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
