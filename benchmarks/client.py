"""The client against the server's limit: one ``encode`` of many crops against perf_analyzer at its best."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from arcface_builder.build import build
from arcface_builder.check.crops import face_like
from arcface_builder.source.load import Synthetic
from arcface_server import LocalTriton
from arcface_server.perf.binary import find_perf_analyzer
from arcface_server.perf.measurement import Load, measure, write_input_data
from report import network, new_parser, origin, publish
from workers import Worker, triton

BATCH = 32
CONCURRENCIES = (1, 2, 4)
WINDOWS = 3


def main() -> None:
    """Run the benchmark."""
    parser = new_parser(__doc__, depth="r18", turns=5)
    parser.add_argument("--crops", type=int, default=2000, help="crops in one encode (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = build(Synthetic(arguments.depth), name="arcface", repository=folder / "repository")
        with LocalTriton(folder / "repository") as server:
            data = folder / "crops.json"
            write_input_data(face_like(64), data)
            # perf_analyzer's three windows together embed as many crops as one call of the client.
            requests = max(1, arguments.crops // (WINDOWS * BATCH))
            load = Load(server.grpc_url, built.model, None, data, "none", requests)
            figures = compare(load, arguments.crops, arguments.turns)
    report = {**origin(arguments), "depth": arguments.depth, **figures}
    publish("client", report, page(report), arguments.output)


def compare(load: Load, crops: int, turns: int) -> dict[str, object]:
    """Let ``encode`` and perf_analyzer at its best concurrency take turns."""
    perf_analyzer = find_perf_analyzer()

    def rival(concurrency: int) -> float:
        return measure(perf_analyzer, load, BATCH, concurrency, settle=False).faces_per_s

    best = max(CONCURRENCIES, key=rival)
    with Worker(triton, load.url, load.model) as client:
        client.seconds(crops, 1)
        ours, theirs = [], [rival(best)]
        for _ in track(range(turns), "turns", console=Console(stderr=True)):
            ours.append(crops / client.seconds(crops, 1))
            theirs.append(rival(best))
    # The machine's speed drifts, so each call is compared with the rival's turns before and after it.
    ratios = [
        2 * own / (before + after) for own, before, after in zip(ours, theirs, theirs[1:], strict=False)
    ]
    return {
        "crops": crops,
        "perf_analyzer_concurrency": best,
        "encode_faces_per_s": round(statistics.median(ours), 1),
        "perf_analyzer_faces_per_s": round(statistics.median(theirs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def page(report: Mapping[str, Any]) -> str:
    """The page for the documentation."""
    return f"""# The client

One `encode` of {report["crops"]} crops by {network(report["depth"])}: \
{report["encode_faces_per_s"]} faces a second, {report["ratio"]} of what perf_analyzer reaches on the same
server in batches of {BATCH} at its best concurrency, {report["perf_analyzer_concurrency"]} \
({report["perf_analyzer_faces_per_s"]} faces a second). Median of alternating turns in one run, each call
against the mean of the two turns of perf_analyzer around it: {report["ratios"]}.

Machine: {report["machine"]}. Absolute figures are this machine's; the ratio is what to compare.

Made by `{report["command"]} --output docs/benchmarks` (`make bench`); as data: [client.json](client.json).
"""


if __name__ == "__main__":
    main()
