"""How a job on Ray grows with its actors, and what it costs beside the same job without Ray.

The model is a stand-in that sleeps, as an actor does while a GPU works, so that one machine can have many.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray

from arcface_client.bulk.job import fill_gallery
from arcface_client.bulk.ray_job import Actors, RayStream
from arcface_client.bulk.source import open_source
from arcface_client.bulk.stream import Observe, RowStream, Stream
from arcface_client.evaluation.report import versions
from arcface_client.gallery import GalleryInfo
from arcface_client.models.embedding_space import EmbeddingSpace
from bulk import make_sources
from bulk_job import DIM, StandIn
from report import FOLDER
from script import write

ACTORS: Final = (1, 2, 4)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=20_000, help="of each run (default: %(default)s)")
    parser.add_argument("--crop-ms", type=float, default=4.0, help="of the stand-in (default: %(default)s)")
    parser.add_argument(
        "--turns", type=int, default=3, help="of each job, alternating (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder (default: docs/benchmarks)")
    arguments = parser.parse_args()
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in (0, *ACTORS)}
    ray.init("local", num_cpus=8, object_store_memory=1 << 30, include_dashboard=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as name:
        source = make_sources(Path(name), arguments.crops)["folder"]
        for turn in range(arguments.turns):
            for count, took in found.items():
                output = Path(name, f"gallery-{turn}-{count}")
                took.append(job(source, output, count, arguments.crop_ms / 1000))
                print(count, took[-1], os.getloadavg(), flush=True)
    ray.shutdown()
    table = to_table(found, arguments.crops, arguments.crop_ms)
    write(arguments.output, "ray", versions=versions(None) | {"ray": ray.__version__}, tables=[table])


def job(source: Path, output: Path, actors: int, crop_s: float) -> tuple[float, float]:
    """Embed a source with so many actors, or without Ray for 0: seconds, and rows a second once they come."""
    seen: list[tuple[float, int]] = []
    crops, observe = open_source([str(source)]), partial(_note, seen)
    started = time.perf_counter()
    result = fill_gallery(_stream(crops, actors, crop_s, observe), output, GalleryInfo(dim=DIM))
    took = time.perf_counter() - started
    (first, before), (last, rows) = seen[0], seen[-1]
    assert result.rows == rows
    return took, (rows - before) / (last - first)


def _note(seen: list[tuple[float, int]], counts: Any, _: object) -> None:
    seen.append((time.perf_counter(), counts.done))


def _stream(source: Any, actors: int, crop_s: float, observe: Observe) -> RowStream:
    if not actors:
        return Stream(source, StandIn(crop_s), observe=observe)
    making, size = partial(StandIn, crop_s), Actors(least=actors, most=actors)
    return RayStream(ray, source, making, EmbeddingSpace(), size, resize=False, observe=observe)


def to_table(found: dict[int, list[tuple[float, float]]], count: int, crop_ms: float) -> dict[str, Any]:
    """Medians, and ratios of what ran in one turn."""
    rows = []
    for actors, runs in found.items():
        took, rates = ([run[which] for run in runs] for which in (0, 1))
        linear = [one / (found[1][turn][1] * actors) for turn, one in enumerate(rates)] if actors else []
        beside = [one / found[0][turn][0] for turn, one in enumerate(took)]
        rows.append(
            {
                "job": f"Ray, actors: {actors}" if actors else "without Ray",
                "crops a second": round(statistics.median(rates), 1),
                "of linear": f"{statistics.median(linear):.2f}" if linear else "",
                "from start to end, s": round(statistics.median(took), 1),
                "time beside the job without Ray": f"{statistics.median(beside):.2f}",
            }
        )
    note = (
        f"{count:,} JPEG crops, a stand-in of {crop_ms:g} ms a crop that sleeps; medians of {len(found[0])} "
        f"alternating turns, load average {os.getloadavg()[0]:.1f}. Crops a second: from the first row on; "
        "the time from start to end has the start of the actors in it, and not that of Ray."
    )
    return {
        "title": "Embedding many crops. On Ray, with a stand-in that sleeps",
        "note": note,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
