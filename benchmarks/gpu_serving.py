"""A plan through a real Triton: under NVIDIA's perf_analyzer, and called by one process of the client."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from arcface_builder.repository.publish import OnnxVersion
from arcface_server import LocalTriton
from arcface_server.perf.binary import find_perf_analyzer
from arcface_server.perf.measurement import Load, SharedMemory, load_crops, measure, write_input_data
from workers import Worker, pipeline

_CLIENT_CROPS: Final = 16_384
_CLIENT_CALLS: Final = 5
_SHARED: Final[tuple[SharedMemory, ...]] = ("none", "system")


def served(
    repository: Path,
    onnx: OnnxVersion,
    precision: str,
    batches: Sequence[int],
    concurrencies: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Measure one model over gRPC, with crops inside the requests and in system shared memory.

    The client's rows have no batch size and no concurrency: it chooses them itself.
    """
    network = onnx.name.removeprefix("arcface_")
    perf_analyzer = find_perf_analyzer()
    with tempfile.TemporaryDirectory(prefix="arcface-bench-") as scratch, LocalTriton(repository) as server:
        input_data = Path(scratch, "crops.json")
        write_input_data(load_crops(None), input_data)
        for shared_memory in _SHARED:
            for batch in batches:
                load = Load(
                    url=server.grpc_url,
                    model=f"{onnx.name}_trt",
                    version=None,
                    input_data=input_data,
                    shared_memory=shared_memory,
                    requests=1600 // math.isqrt(batch),  # a second or two of them
                )
                for concurrency in concurrencies:
                    figure = measure(perf_analyzer, load, batch, concurrency)
                    where = {"network": network, "precision": precision, "shared_memory": shared_memory}
                    yield {"caller": "perf_analyzer", **where, **dataclasses.asdict(figure)}
        with Worker(pipeline, server.grpc_url, onnx.name, str(onnx.path.parents[2])) as client:
            times = [client.seconds(_CLIENT_CROPS, 1) for _ in range(_CLIENT_CALLS)]
        yield {
            "caller": "one client process",
            "network": network,
            "precision": precision,
            "shared_memory": "none",
            "batch_size": 0,
            "concurrency": 0,
            "faces_per_s": _CLIENT_CROPS / statistics.median(times),
            "p50_ms": None,
            "p99_ms": None,
            "settled": None,
        }
