"""In float32, as processors without bfloat16 compute: ONNX Runtime and OpenVINO against the file as it is.

Everything runs in this process, one call after the other. OpenVINO is told to compute in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.progress import track

from arcface_builder.build import build
from arcface_builder.source.load import Synthetic
from arcface_client.evaluation.benchmark import machine
from arcface_client.evaluation.report import versions
from arcface_client.evaluation.samples import generated_samples
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.models.repository import LocalModels
from arcface_client.runtimes.base import ENTRIES, Runtime
from arcface_client.runtimes.onnxruntime import OnnxRuntime, open_session
from arcface_client.runtimes.openvino import OpenVino
from report import FOLDER, network, numbers

BASELINE: Final = "ONNX Runtime, the file as it is"


def main() -> int:
    """Run the benchmark, and write its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", default="r50", choices=["r18", "r34", "r50", "r100"])
    parser.add_argument("--batches", type=numbers, default="1,8,32", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder (default: docs/benchmarks)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(Synthetic(arguments.depth), name="arcface", repository=Path(folder))
        path = LocalModels(Path(folder)).onnx("arcface").path
        runtimes: dict[str, Runtime] = {
            BASELINE: OnnxRuntime(path, open_session(path, entries=ENTRIES, as_it_is=True)),
            "ONNX Runtime": OnnxRuntime(path, open_session(path, entries=ENTRIES)),
            "OpenVINO": OpenVino(path, precision="fp32"),
        }
        rows = [row for size in arguments.batches for row in _rows(runtimes, size, arguments.turns)]
    report = {
        "command": " ".join(["python", "benchmarks/float32.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(None),
        "tables": [
            {
                "title": f"{network(arguments.depth)} in float32, in process",
                "note": "What a processor without bfloat16 would do. Ratio: to the first, which is what "
                f"InsightFace runs; median of {arguments.turns} pairs of calls.",
                "rows": rows,
                "in_readme": False,
            }
        ],
    }
    output = arguments.output / f"float32-{arguments.depth}.json"
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(output)
    return 0


def _rows(runtimes: dict[str, Runtime], size: int, turns: int) -> Iterator[dict[str, Any]]:
    """Let the runtimes take turns at one batch size; gives a row of figures for each."""
    crops = generated_samples(size).crops
    taken: dict[str, list[float]] = {name: [] for name in runtimes}
    for turn in track(range(turns), f"batch {size}", transient=True):
        order = list(runtimes)[turn % len(runtimes) :] + list(runtimes)[: turn % len(runtimes)]
        for name in order:
            runtimes[name].embed(crops[:1])  # wakes its threads
            began = time.perf_counter()
            runtimes[name].embed(crops)
            taken[name].append(time.perf_counter() - began)
    expected = runtimes[BASELINE].embed(golden_crops())
    for name, seconds in taken.items():
        ratios = [first / own for first, own in zip(taken[BASELINE], seconds, strict=True)]
        yield {
            "runtime": name,
            "batch": size,
            "faces a second": round(size / statistics.median(seconds), 1),
            "ratio": round(statistics.median(ratios), 2),
            "drift": float(f"{max(0, largest_drift(expected, runtimes[name].embed(golden_crops()))):.0e}"),
        }


if __name__ == "__main__":
    sys.exit(main())
