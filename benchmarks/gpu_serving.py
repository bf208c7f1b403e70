"""A plan through a real Triton, measured by NVIDIA's perf_analyzer."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from arcface_server import LocalTriton
from arcface_server.perf.binary import find_perf_analyzer
from arcface_server.perf.input_data import load_crops, write_input_data
from arcface_server.perf.measurement import Load, SharedMemory, measure

_SHARED: Final[tuple[SharedMemory, ...]] = ("none", "system")


def served(
    repository: Path, network: str, precision: str, batches: Sequence[int], concurrencies: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Measure one model over gRPC, with crops inside the requests and in system shared memory."""
    perf_analyzer = find_perf_analyzer()
    with tempfile.TemporaryDirectory(prefix="arcface-bench-") as scratch, LocalTriton(repository) as server:
        input_data = Path(scratch, "crops.json")
        write_input_data(load_crops(None), input_data)
        for shared_memory in _SHARED:
            for batch in batches:
                load = Load(
                    url=server.grpc_url,
                    model=f"arcface_{network}_trt",
                    version=None,
                    input_data=input_data,
                    shared_memory=shared_memory,
                    requests=max(200, 1600 // batch),  # some seconds of them
                )
                for concurrency in concurrencies:
                    figure = measure(perf_analyzer, load, batch, concurrency)
                    where = {"network": network, "precision": precision, "shared_memory": shared_memory}
                    yield {**where, **dataclasses.asdict(figure)}
