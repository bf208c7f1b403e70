"""How fast ``arcface-client embed`` is, where its time goes, and what memory it takes."""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from arcface_builder.build import build
from arcface_builder.check.crops import face_like
from arcface_builder.source.load import Synthetic
from arcface_client.bulk.decode import decode
from arcface_client.bulk.ids import IdSet
from arcface_client.bulk.reader import CHUNK
from arcface_client.bulk.rows import embed
from arcface_client.bulk.source import Item, open_source
from arcface_client.gallery import GalleryInfo, write_gallery
from arcface_client.triton.client import EmbeddingClient
from arcface_server import LocalTriton
from bulk_job import DIM, StandIn, send_chunks
from script import usual_flags, write

NAME: Final = "bulk"

CROP_US: Final = 50
"""What the stand-in takes for a crop."""

DISTINCT: Final = 2000
"""Different images; further crops are links to them."""


def main() -> None:
    """Run the benchmark."""
    parser = usual_flags(__doc__)
    parser.set_defaults(depth="r18")
    parser.add_argument("--crops", type=int, default=20_000, help="of each run (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="of each speed (default: %(default)s)")
    parser.add_argument("--triton-turns", type=int, default=3, help="through Triton (default: %(default)s)")
    parser.add_argument("--triton-crops", type=int, default=4000, help="of a turn (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=["stages", "speed", "memory", "triton"])
    arguments = parser.parse_args()
    path = arguments.output / f"{NAME}.json"
    found: dict[str, Any] = json.loads(path.read_text())["bulk"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = make_sources(folder, arguments.crops)
        measures: dict[str, Callable[[], Any]] = {
            "stages": lambda: stages(sources),
            "speed": lambda: speeds(sources, arguments.crops, arguments.turns),
            "memory": lambda: memory(sources["folder"]),
            "triton": lambda: through_triton(sources["folder"], arguments),
        }
        for kind in arguments.only:
            found[kind] = measures[kind]() | {"load_average": round(os.getloadavg()[0], 1)}
            print(json.dumps({kind: found[kind]}, indent=1), file=sys.stderr)
    write(arguments.output, NAME, bulk=found, tables=tables(found))


def tables(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of docs/bulk.md and of the page, of what was measured."""
    measured = {kind: dict(values) for kind, values in found.items()}
    loads = {kind: values.pop("load_average") for kind, values in measured.items()}
    steps, by_source = measured.get("stages", {}), measured.get("speed", {})
    rows: dict[str, tuple[str, list[dict[str, object]]]] = {
        "stages": (
            "What a JPEG crop costs",
            [{"step": step, "µs of one core": us} for step, us in steps.items()],
        ),
        "speed": (
            f"With a stand-in for a model that takes {CROP_US} µs a crop",
            [
                {
                    "JPEG crops in a": kind,
                    "crops a second": one["crops_per_s"],
                    "seconds until the first": one["first_s"],
                    "µs of the embedder's process": one["embedder_us"],
                    "µs of the processes that read": one["readers_us"],
                }
                for kind, one in by_source.items()
            ],
        ),
        "memory": (
            "The most memory",
            [
                {
                    "crops": int(count),
                    "MiB": one["embedder_mib"],
                    "MiB of a process that reads": one["reader_mib"],
                }
                for count, one in measured.get("memory", {}).items()
            ],
        ),
        "triton": (
            "Against the model alone, through a Triton on the same processors",
            [
                {
                    "network": one["depth"],
                    "crops": one["crops_a_turn"],
                    "the model's crops a second": one["model_crops_per_s"],
                    "of the job": one["embed_crops_per_s"],
                    "ratio": one["ratio"],
                }
                for one in [measured.get("triton")]
                if one
            ],
        ),
    }
    return [
        {
            "title": f"Embedding many crops. {title}",
            "rows": own,
            "note": f"Load average of the machine: {loads[kind]}.",
        }
        for kind, (title, own) in rows.items()
        if own
    ]


def make_sources(folder: Path, count: int) -> dict[str, Path]:
    """The same JPEG files as a folder, a tar file and a Parquet file, by kind."""
    contents = list[bytes]()
    for crop in face_like(min(count, DISTINCT)):
        file = io.BytesIO()
        Image.fromarray(crop[..., ::-1]).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    sources = {"folder": folder / "crops", "tar": folder / "crops.tar", "parquet": folder / "crops.parquet"}
    names = write_folder(sources["folder"], contents, count)
    images = [contents[index % len(contents)] for index in range(count)]
    with tarfile.open(sources["tar"], "w") as archive:
        for name, content in zip(names, images, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    pq.write_table(pa.table({"id": names, "image": images}), sources["parquet"], row_group_size=1000)
    return sources


def write_folder(folder: Path, contents: Sequence[bytes], count: int) -> list[str]:
    """Make a folder of folders of 1,000 files each, and return their names."""
    paths = [folder / f"{index // 1000:04}" / f"{index:07}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if index < len(contents):
            path.write_bytes(contents[index])
        else:
            path.hardlink_to(paths[index % len(contents)])
    return [str(path.relative_to(folder)) for path in paths]


def stages(sources: dict[str, Path]) -> dict[str, float]:
    """Microseconds of one core that each step takes for a crop, alone."""
    items = list(open_source([str(sources["folder"])]).items())
    some = items[: 8 * CHUNK]
    contents = [Path(str(item.data)).read_bytes() for item in some]
    in_memory = [Item(item.id, content) for item, content in zip(some, contents, strict=True)]
    decoded, place = decode(in_memory), np.empty((len(some), 112, 112, 3), np.uint8)
    instant, info = StandIn(0), GalleryInfo(dim=DIM)
    rows = embed(instant, decoded)
    part = sources["folder"].parent / "part.parquet"

    def listed(kind: str) -> Callable[[], int]:
        return lambda: sum(1 for _ in open_source([str(sources[kind])]).items())

    def in_chunks(step: Callable[[slice], object]) -> Callable[[], int]:
        def run() -> int:
            for at in range(0, len(some), CHUNK):
                step(slice(at, at + CHUNK))
            return len(some)

        return run

    def pixels(content: bytes) -> object:
        return np.asarray(Image.open(io.BytesIO(content)))[..., ::-1].copy()

    ids = IdSet()
    steps: dict[str, Callable[[], int]] = {
        "list a folder": listed("folder"),
        "list and read a tar file": listed("tar"),
        "list and read a Parquet file": listed("parquet"),
        "find ids that occur again": in_chunks(lambda at: ids.add([item.id for item in some[at]])),
        "open and read a file": in_chunks(
            lambda at: [Path(str(item.data)).read_bytes() for item in some[at]]
        ),
        "decode into shared memory": in_chunks(lambda at: decode(in_memory[at], into=place[at])),
        "(decode with Pillow)": in_chunks(lambda at: [pixels(content) for content in contents[at]]),
        "make a call of the embedder": in_chunks(lambda at: instant.encode(decoded.crops[at])),
        "write a part": in_chunks(
            lambda at: write_gallery(part, info, [rows.table(info)]) if not at.start else 0
        ),
    }
    found = {}
    for name, step in steps.items():
        took = []
        for _ in range(5):
            started = time.process_time()
            count = step()
            took.append((time.process_time() - started) / count)
        found[name] = round(min(took) * 1e6, 1)
    return found | {"(send the pixels through a pipe)": through_a_pipe()}


def through_a_pipe(chunks: int = 100) -> float:
    """Microseconds of one core, at both ends, that a crop takes through a pipe instead of shared memory."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=send_chunks, args=(there, chunks))
    process.start()
    here.recv()
    started = time.process_time()
    for _ in range(chunks - 1):
        here.recv()
    took_s = time.process_time() - started + float(here.recv())
    process.join()
    return round(took_s / chunks / CHUNK * 1e6, 1)


def job(source: Path, model: float | str = CROP_US) -> dict[str, float]:
    """Run ``bulk_job`` on a source."""
    output = source.with_suffix(".gallery")
    command = [sys.executable, str(Path(__file__).with_name("bulk_job.py")), str(source), str(output)]
    done = subprocess.run([*command, str(model)], check=True, capture_output=True, text=True)
    shutil.rmtree(output)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def speeds(sources: dict[str, Path], count: int, turns: int) -> dict[str, Any]:
    """Crops a second with the stand-in, by source; medians of alternating turns."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in sources}
    for _ in range(turns):
        for kind, source in sources.items():
            found[kind].append(job(source))
            assert found[kind][-1]["rows"] == count

    def median(some: Sequence[dict[str, float]], key: str) -> float:
        return statistics.median(one[key] for one in some)

    return {
        kind: {
            "crops_per_s": round((count - CHUNK) / median(some, "steady_s")),
            "best_crops_per_s": round((count - CHUNK) / min(one["steady_s"] for one in some)),
            "from_start_to_end_s": round(median(some, "took_s"), 2),
            "first_s": round(median(some, "first_s"), 2),
            "embedder_us": round(median(some, "here_s") / count * 1e6),
            "readers_us": round(median(some, "readers_s") / count * 1e6),
        }
        for kind, some in found.items()
    }


def memory(folder: Path) -> dict[str, Any]:
    """Peak memory at 10,000 and at 100,000 crops, of the embedder and of a process that reads."""
    contents = [path.read_bytes() for path in sorted((folder / "0000").iterdir())]
    found: dict[str, Any] = {}
    for count in (10_000, 100_000):
        into = folder.with_name(f"memory{count}")
        write_folder(into, contents, count)
        figures = job(into, 0)
        found[str(count)] = {name: figures[name] for name in ("embedder_mib", "reader_mib")}
    return found


def through_triton(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The job against the model's own throughput, on crops that are in memory; alternating turns."""
    count = arguments.triton_crops
    paths = sorted(folder.rglob("*.jpg"))[:count]
    with tempfile.TemporaryDirectory() as name:
        repository, source = Path(name) / "models", Path(name) / "crops"
        build(Synthetic(arguments.depth), name="arcface", repository=repository)
        write_folder(source, [path.read_bytes() for path in paths], count)
        crops = decode(list(open_source([str(source)]).items())).crops
        own, steady, started_s = list[float](), list[float](), list[float]()
        with LocalTriton(repository) as server, EmbeddingClient(server.grpc_url, "arcface_onnx") as client:
            client.encode(crops[:CHUNK])
            for _ in range(arguments.triton_turns):
                began = time.perf_counter()
                client.encode(crops)
                own.append(count / (time.perf_counter() - began))
                figures = job(source, server.grpc_url)
                steady.append((count - CHUNK) / figures["steady_s"])
                started_s.append(figures["took_s"] - count / steady[-1])
    ratios = [mine / models for mine, models in zip(steady, own, strict=True)]
    model, ratio, start_s = (statistics.median(each) for each in (own, ratios, started_s))
    whole = arguments.crops / (arguments.crops / (model * ratio) + start_s) / model
    return {
        "depth": arguments.depth,
        "crops_a_turn": count,
        "model_crops_per_s": round(model, 1),
        "embed_crops_per_s": round(statistics.median(steady), 1),
        "ratio": round(ratio, 3),
        "ratios": [round(each, 3) for each in ratios],
        "start_and_end_s": round(start_s, 2),
        f"ratio_of_{arguments.crops}_crops_with_start_and_end": round(whole, 3),
    }


if __name__ == "__main__":
    main()
