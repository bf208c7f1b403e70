"""One job of benchmarks/bulk.py in a process of its own; those that read import this module as well."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.bulk.job import fill_gallery
from arcface_client.bulk.reader import CHUNK
from arcface_client.bulk.source import open_source
from arcface_client.bulk.stream import Stream
from arcface_client.gallery import GalleryInfo
from arcface_client.observability.diagnostics import Diagnostics, Served, Source
from arcface_client.triton.embed_request import EmbedRequest

DIM: Final = 512


class StandIn(EmbeddingBackend):
    """A model that takes a fixed time for a crop, one call after the other.

    It sleeps, as a process does while a GPU works.
    """

    def __init__(self, crop_s: float) -> None:
        self._crop_s = crop_s
        self._lock = threading.Lock()

    def ensure_ready(self) -> None:
        """It is ready."""

    def diagnostics(self) -> Diagnostics:
        """Say what it is."""
        return Diagnostics(backend="stand-in")

    def close(self) -> None:
        """It holds nothing."""

    def run(self, request: EmbedRequest) -> Served:
        """Wait, and give all crops the same embedding."""
        count = len(request.crops)
        if self._crop_s:
            with self._lock:
                time.sleep(count * self._crop_s)
        request.set_width(DIM)
        request.fill(slice(0, count), np.full((count, DIM), DIM**-0.5, np.float32))
        return Served((Source("stand-in", "stand-in", 1, "this process", count),))


def main(source: str, output: str, model: str) -> None:
    """Embed a source into a gallery, and print what it took.

    Args:
        source: Where the crops are.
        output: A folder for the gallery.
        model: Microseconds that the stand-in takes for a crop, or HOST:PORT of a Triton with arcface_onnx.
    """
    seen: list[float] = []
    before, started = usage(), time.perf_counter()
    backend: EmbeddingBackend
    if ":" in model:
        from arcface_client.backends.pooled import TritonBackend

        backend = TritonBackend(model, "arcface", ["arcface_onnx"])
    else:
        backend = StandIn(float(model) / 1e6)
    backend.ensure_ready()
    stream = Stream(open_source([source]), backend, observe=lambda *_: seen.append(time.perf_counter()))
    result = fill_gallery(stream, Path(output), GalleryInfo(dim=DIM))
    took_s, after = time.perf_counter() - started, usage()
    backend.close()
    # Not ru_maxrss, which for this process begins with what its parent had.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    figures = {
        "rows": result.rows - result.failed,
        "took_s": took_s,
        "first_s": seen[0] - started,
        "steady_s": seen[-1] - seen[0],
        "here_s": after[0] - before[0],
        "readers_s": after[1] - before[1],
        "embedder_mib": round(int(status["VmHWM"].split()[0]) / 1024, 1),
        "reader_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
    }
    print(json.dumps(figures))


def usage() -> tuple[float, float]:
    """Seconds of the processors: of this process, and of its children that ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


def send_chunks(connection: Connection, chunks: int) -> None:
    """Send chunks of crops through a pipe, and then the seconds of a processor that it took."""
    crops = np.zeros((CHUNK, 112, 112, 3), np.uint8)
    started = time.process_time()
    for _ in range(chunks):
        connection.send(crops)
    connection.send(time.process_time() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
