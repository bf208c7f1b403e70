"""How cost grows on a CPU: with callers, with instances, and with the number of crops.

Everything goes through Triton with OpenVINO. An IResNet-50 on two cores would need half an hour for a hundred
thousand crops. A network of two convolutions embeds them, which shows what the way there and back costs.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from rich.console import Console

from arcface_builder.build import build
from arcface_builder.cli.app import main as compile_model
from arcface_builder.source.load import OnnxFile, Synthetic
from arcface_client import EmbeddingClient
from arcface_client.contract import CROP_SHAPE, Crops
from arcface_client.evaluation.samples import generated_samples
from arcface_client.models.naming import sibling_model
from arcface_server import LocalTriton
from arcface_server.perf.binary import find_perf_analyzer
from arcface_server.perf.measurement import CROP_COUNT, Load, Measurement, measure, write_input_data
from cpu import resident_mb
from script import network, numbers, usual_flags, write

ONE_CALLER: Final = (32, 1)
MANY_CALLERS: Final = (1, 32)
"""Crops in a request, and requests under way at a time."""

SHARE: Final = 0.7
"""Of what many callers get at most: the load of a server that keeps up."""

_WINDOW_CROPS: Final = 128
_BLOCK: Final = 1000  # crops that are made at a time


def main() -> int:
    """Run the benchmark, and write its JSON."""
    parser = usual_flags(__doc__)
    parser.add_argument("--instances", type=numbers, default="1,2,4", help="default: %(default)s")
    parser.add_argument("--crops", type=numbers, default="1000,10000,100000", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Console(stderr=True).status("building") as shown:
        folder = Path(name)
        _two_convolutions(folder / "small.onnx")
        small = OnnxFile(folder / "small.onnx", color="bgr")
        # A repository each, so that a server has one network.
        build(small, name="small", repository=folder / "small")
        build(Synthetic(arguments.depth), name="arcface", repository=folder / "arcface")
        _compile(folder, "small")
        instances = []
        for count in arguments.instances:
            shown.update(f"{count} instances")
            instances.append(_with_instances(folder, count, arguments.turns))
        shown.update("many crops")
        crops = list(_by_crops(folder, arguments.crops))
    tables = [
        {
            "title": f"{network(arguments.depth)} through Triton with OpenVINO: callers and instances",
            "note": f"Faces a second by perf_analyzer over gRPC, means of {arguments.turns} turns that "
            "alternate. Then the time of a request when single crops come at random moments, in a second "
            "70 % as many as 32 callers get. Cold start: from nothing to the first embedding.",
            "rows": instances,
        },
        {
            "title": "Many crops through Triton with OpenVINO",
            "note": "EmbeddingClient.stream and a network of two convolutions: what the way costs.",
            "rows": crops,
        },
    ]
    write(arguments.output, "growth", tables=tables)
    return 0


def _compile(folder: Path, name: str, instances: int = 1) -> None:
    """Add the sibling for OpenVINO, or change its number of instances."""
    place = [f"--name={name}", f"--repository={folder / name}", "--runtime=openvino"]
    if compile_model(["compile", *place, f"--instances={instances}"]):
        raise SystemExit(1)


def _with_instances(folder: Path, count: int, turns: int) -> dict[str, Any]:
    """Start a server with a number of instances, and measure it from its start: figures by column."""
    _compile(folder, "arcface", count)
    model = sibling_model("arcface", "openvino")
    flags = ["--model-control-mode=explicit", f"--load-model={model}"]
    began = time.perf_counter()
    with LocalTriton(folder / "arcface", flags=flags) as server:
        with EmbeddingClient(server.grpc_url, model) as client:
            client.encode(generated_samples(1).crops)
        start_s = time.perf_counter() - began
        data = folder / "crops.json"
        write_input_data(generated_samples(CROP_COUNT).crops, data)
        taken: dict[tuple[int, int], list[float]] = {ONE_CALLER: [], MANY_CALLERS: []}
        for _ in range(turns):
            for (batch, callers), own in taken.items():
                own.append(_measured(server.grpc_url, model, data, batch, callers).faces_per_s)
        one, many = (statistics.mean(own) for own in taken.values())
        rate = max(1, round(SHARE * many))
        partial = _measured(server.grpc_url, model, data, 1, None, rate)
        return {
            "instances": count,
            "1 caller, batches of 32": round(one, 1),
            "32 callers, one crop each": round(many, 1),
            "ratio": round(many / one, 2),
            "p50 ms at 70 %": round(partial.p50_ms, 1),
            "p99 ms at 70 %": round(partial.p99_ms, 1),
            "cold start s": round(start_s, 1),
            "server MiB": round(resident_mb(server.pid)),
        }


def _measured(
    url: str, model: str, data: Path, batch: int, callers: int | None, rate: int | None = None
) -> Measurement:
    load = Load(url, model, None, data, "none", requests=max(4, _WINDOW_CROPS // batch))
    return measure(find_perf_analyzer(), load, batch, callers, rate)


def _by_crops(folder: Path, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Embed ever more crops by one server, each time in a new process, whose memory is measured."""
    model = sibling_model("small", "openvino")
    with LocalTriton(folder / "small") as server:
        for count in counts:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, client_mb = pool.apply(_stream, (server.grpc_url, model, count))
            yield {
                "crops": count,
                "seconds": round(seconds, 1),
                "faces a second": round(count / seconds, 1),
                "client MiB": round(client_mb),
                "server MiB": round(resident_mb(server.pid)),
            }


def _stream(url: str, model: str, count: int) -> tuple[float, float]:
    """Embed crops as they come; gives the seconds, and the largest resident memory of this process in MiB."""
    with EmbeddingClient(url, model) as client:
        client.encode(generated_samples(1).crops)
        began = time.perf_counter()
        embedded = sum(len(rows) for rows in client.stream(_crops(count)))
        seconds = time.perf_counter() - began
    if embedded != count:
        raise SystemExit(f"{embedded} of {count} crops were embedded.")
    status = Path("/proc/self/status").read_text()
    return seconds, int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _crops(count: int) -> Iterator[Crops]:
    block = np.random.default_rng(0).integers(0, 256, (_BLOCK, *CROP_SHAPE), np.uint8)
    for start in range(0, count, _BLOCK):
        yield from block[: min(_BLOCK, count - start)]


def _two_convolutions(path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        small (float[N, 3, 112, 112] input, float[16, 3, 4, 4] first, float[64, 16, 4, 4] second,
               float[3136, 512] last) => (float[N, 512] output) {
            a = Conv <strides = [4, 4]> (input, first)
            b = Relu (a)
            c = Conv <strides = [4, 4]> (b, second)
            d = Flatten (c)
            output = MatMul (d, last)
        }"""
    )
    random = np.random.default_rng(0)
    for value in list(model.graph.input)[1:]:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        weights = random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, value.name))
        model.graph.input.remove(value)
    onnx.save(model, path)


if __name__ == "__main__":
    sys.exit(main())
