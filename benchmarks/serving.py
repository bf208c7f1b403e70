"""Serving against running in process: InsightFace, ONNX Runtime and this client through Triton.

All rivals take turns on the same machine, each in a process of its own. A figure is the median of its
turns. A ratio is the median of the ratios within a turn, so that a slow moment of the machine affects both.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track

from arcface_builder.build import build
from arcface_builder.source.load import Synthetic
from arcface_server import LocalTriton
from report import network, new_parser, numbers, origin, publish, table
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
    parser = new_parser(__doc__, depth="r50", turns=15)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes (default: %(default)s)")
    arguments = parser.parse_args()
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
            rows = measure(rivals, numbers(arguments.batches), arguments.turns)

    report = {**origin(arguments), "rows": [asdict(row) for row in rows]}
    publish("serving", report, page(arguments.depth, report, rows), arguments.output)


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


def cells(rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    """A table with a row for each rival and a column for each batch size."""
    batches = sorted({row.batch for row in rows})
    found = {(row.rival, row.batch): text(row) for row in rows}
    rivals = dict.fromkeys(row.rival for row in rows)
    return table(
        ["", *(f"batch {batch}" for batch in batches)],
        [[rival, *(found[rival, batch] for batch in batches)] for rival in rivals],
    )


def page(depth: str, report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The page for the documentation."""
    return f"""# Serving against running in process

{network(depth)} with synthetic weights, faces a second, and in brackets the ratio to ONNX Runtime in process.
Medians of alternating turns in one run, each rival in a process of its own, one call at a time.

{cells(rows, lambda row: f"{row.faces_per_s:.1f}/s ({row.ratio:.3f})")}

Machine: {report["machine"]}. Absolute figures are this machine's; the ratios are what to compare.

Made by `{report["command"]} --output docs/benchmarks` (`make bench`); the same as data:
[serving.json](serving.json).
"""


if __name__ == "__main__":
    main()
