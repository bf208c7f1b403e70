"""The client against what the server can do: one ``encode`` of many crops beside perf_analyzer's best."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from arcface_builder.build import build
from arcface_builder.faces import face_like
from arcface_builder.sources import Synthetic
from arcface_client.commandline import progress
from arcface_server import LocalTriton
from arcface_server.perf.binary import find_perf_analyzer
from arcface_server.perf.input_data import write_input_data
from arcface_server.perf.measurement import Load, measure
from serving import machine
from workers import Worker, triton

BATCH = 32
CONCURRENCIES = (1, 2, 4)
WINDOW_REQUESTS = 10


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", default="r18", choices=["r18", "r34", "r50", "r100"])
    parser.add_argument("--crops", type=int, default=2000, help="crops in one encode (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each rival (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for client.json and client.md")
    arguments = parser.parse_args()
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/client.py --depth {arguments.depth} --crops {arguments.crops}"
    command += f" --turns {arguments.turns}"

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = build(Synthetic(arguments.depth), name="arcface", repository=folder / "repository")
        with LocalTriton(folder / "repository") as server:
            data = folder / "crops.json"
            write_input_data(face_like(64), data)
            load = Load(server.grpc_url, built.model, None, data, "none", WINDOW_REQUESTS)
            figures = compare(load, arguments.crops, arguments.turns)
    report = {"command": command, "machine": machine(), "depth": arguments.depth, **figures}
    text = page(report)
    print(text)
    if arguments.output:
        (arguments.output / "client.json").write_text(json.dumps(report, indent=2) + "\n")
        (arguments.output / "client.md").write_text(text)


def compare(load: Load, crops: int, turns: int) -> dict[str, object]:
    """Let ``encode`` and perf_analyzer at its best concurrency take turns."""
    perf_analyzer = find_perf_analyzer()
    tried = [measure(perf_analyzer, load, BATCH, concurrency) for concurrency in CONCURRENCIES]
    best = max(tried, key=lambda measurement: measurement.faces_per_s).concurrency
    ratios, speeds, unsettled = [], [], 0
    with Worker(triton, load.url, load.model) as client:
        client.seconds(crops, 1)
        for _ in progress(range(turns), unit="turn"):
            ours = crops / client.seconds(crops, 1)
            theirs = measure(perf_analyzer, load, BATCH, best)
            unsettled += not theirs.settled
            ratios.append(ours / theirs.faces_per_s)
            speeds.append(ours)
    return {
        "crops": crops,
        "perf_analyzer_concurrency": best,
        "encode_faces_per_s": round(statistics.median(speeds), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "turns_that_did_not_settle": unsettled,
    }


def page(report: Mapping[str, object]) -> str:
    """The page for the documentation."""
    return f"""# The client

One `encode` of {report["crops"]} crops by IResNet-{str(report["depth"])[1:]}: \
{report["encode_faces_per_s"]} \
faces a second, {report["ratio"]} of what perf_analyzer reaches on the same server in batches of {BATCH} at
its best concurrency, {report["perf_analyzer_concurrency"]}. Median of alternating turns in one run: \
{report["ratios"]}, of which
perf_analyzer called {report["turns_that_did_not_settle"]} not settled.

Machine: {report["machine"]}. Absolute figures are this machine's; the ratio is what to compare.

Made by `{report["command"]} --output docs/benchmarks` (`make bench`); as data: [client.json](client.json).
"""


if __name__ == "__main__":
    main()
