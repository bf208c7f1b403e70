"""What a call with fallback costs, and how long it takes until another replica serves.

The overhead: this project's backend and a bare loop of tritonclient take turns on the same server, each in
a process of its own. The outages: servers are killed while calls run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track

from arcface_builder.build import build
from arcface_builder.source.load import Synthetic
from arcface_server import LocalTriton
from outages import to_the_next_server, to_this_process_and_back
from serving import machine, measure
from workers import Worker, bare, selecting, triton

BARE: Final = "bare tritonclient loop"
AGAIN: Final = "the same, a second time"
CLIENT: Final = "EmbeddingClient"
EMBEDDER: Final = "embedder with replica pool and counters"

NEXT: Final = "killed, another server is there: first embedding by it"
HUNG: Final = "stopped (SIGSTOP), another server is there: first embedding by it"
AWAY: Final = "killed, no other is there: first embedding in this process, its loading included"
BACK: Final = "started again, from its readiness: first embedding by it"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", default="r50", choices=["r18", "r34", "r50", "r100"])
    parser.add_argument("--batches", default="1,8", help="batch sizes (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="turns of each rival (default: %(default)s)")
    parser.add_argument("--outages", type=int, default=7, help="outages of each kind (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for fallback.json and fallback.md")
    arguments = parser.parse_args()
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/fallback.py --depth {arguments.depth} --batches {arguments.batches}"
    command += f" --turns {arguments.turns} --outages {arguments.outages}"

    batches = [int(text) for text in arguments.batches.split(",")]
    load_average = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name)
        model = build(Synthetic(arguments.depth), name="arcface", repository=repository).model
        report = {
            "command": command,
            "machine": machine(),
            "load_average": load_average,
            "depth": arguments.depth,
            "overhead": overhead(repository, model, batches, arguments.turns),
            "outages_s": outages(repository, arguments.outages),
        }
    text = page(report)
    print(text)
    if arguments.output:
        (arguments.output / "fallback.json").write_text(json.dumps(report, indent=2) + "\n")
        (arguments.output / "fallback.md").write_text(text)


def overhead(repository: Path, model: str, batches: Sequence[int], turns: int) -> list[dict[str, Any]]:
    """How much longer a call takes than the bare loop in the same turn."""
    with ExitStack() as stack:
        url = stack.enter_context(LocalTriton(repository)).grpc_url
        makers = {BARE: (bare, model), AGAIN: (bare, model), CLIENT: (triton, model)}
        rivals = {
            name: stack.enter_context(Worker(make, url, argument))
            for name, (make, argument) in (makers | {EMBEDDER: (selecting, "arcface")}).items()
        }
        rows = measure(rivals, batches, turns, base=BARE)
    return [
        {
            "rival": row.rival,
            "batch": row.batch,
            "ms": round(1000 * row.batch / row.faces_per_s, 3),
            "overhead": round(1 / row.ratio - 1, 4),
        }
        for row in rows
    ]


def outages(repository: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of every outage, by kind."""
    seconds: dict[str, list[float]] = {NEXT: [], HUNG: [], AWAY: [], BACK: []}
    for _ in track(range(repeats), "outages", console=Console(stderr=True)):
        seconds[NEXT].append(to_the_next_server(repository, "arcface", signal.SIGKILL))
        seconds[HUNG].append(to_the_next_server(repository, "arcface", signal.SIGSTOP))
        away_s, back_s = to_this_process_and_back(repository, "arcface")
        seconds[AWAY].append(away_s)
        seconds[BACK].append(back_s)
    return {kind: [round(each, 3) for each in several] for kind, several in seconds.items()}


def page(report: Mapping[str, Any]) -> str:
    """The page for the documentation."""
    network = f"IResNet-{report['depth'].removeprefix('r')}"
    count = len(report["outages_s"][NEXT])
    return f"""# Fallback: its cost, and its delay

## Time of a call

{network} with synthetic weights on one Triton server, one call of one request at a time. In brackets is the
difference to a bare loop of tritonclient. Medians of alternating turns in one run, each rival in a process
of its own. The loop is measured twice; the difference between the two is noise.

{overhead_table(report["overhead"])}

## Outages

The same network, the default settings, calls of one crop all the time; {count} outages of each kind.

{outage_table(report["outages_s"])}

Machine: {report["machine"]}; its load average at the beginning was {report["load_average"]}. Absolute figures
are this machine's.

Made by `{report["command"]} --output docs/benchmarks`
(`make bench`); as data: [fallback.json](fallback.json).
"""


def overhead_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each rival, a column for each batch size."""
    batches = sorted({row["batch"] for row in rows})
    lines = [
        "| | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---|" + "---|" * len(batches),
    ]
    for rival in (BARE, AGAIN, CLIENT, EMBEDDER):
        cells = {row["batch"]: row for row in rows if row["rival"] == rival}
        texts = [f"{cells[batch]['ms']:.1f} ms ({cells[batch]['overhead']:+.1%})" for batch in batches]
        lines.append(f"| {rival} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def outage_table(outages_s: Mapping[str, Sequence[float]]) -> str:
    """A row for each kind of outage, with the median and the worst."""
    lines = ["| the server is | median | worst |", "|---|---|---|"]
    for kind, seconds in outages_s.items():
        lines.append(f"| {kind} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
