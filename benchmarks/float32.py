"""In float32, as processors without bfloat16 compute: InsightFace, ONNX Runtime, OpenVINO, and it in Triton.

One call after the other. OpenVINO is told to compute in float32.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.progress import track

from arcface_builder.build import build
from arcface_builder.cli.app import main as builder
from arcface_builder.source.load import Synthetic
from arcface_client import EmbeddingClient, get_embedding_backend
from arcface_client.contract import Crops, Embeddings
from arcface_client.evaluation.samples import generated_samples
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.models.naming import sibling_model
from arcface_client.models.repository import LocalModels
from arcface_client.runtimes.base import ENTRIES
from arcface_client.runtimes.onnxruntime import OnnxRuntime, open_session
from arcface_client.runtimes.openvino import OpenVino
from arcface_server import LocalTriton
from script import network, numbers, usual_flags, write

NAME: Final = "arcface"
BASELINE: Final = "InsightFace"
FLOAT32: Final = """
parameters [{ key: "INFERENCE_PRECISION_HINT" value: { string_value: "fp32" } }]
"""


def main() -> int:
    """Run the benchmark, and write its JSON."""
    parser = usual_flags(__doc__)
    parser.add_argument("--batches", type=numbers, default="1,8,32", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=10, help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, repository = Path(folder, "source.onnx"), Path(folder, "repository")
        synthetic = Synthetic(arguments.depth)
        synthetic.load().save(source)
        build(synthetic, name=NAME, repository=repository)
        if builder(["compile", f"--name={NAME}", f"--repository={repository}", "--runtime=openvino"]):
            return 1
        path = LocalModels(repository).onnx(NAME).path
        served = sibling_model(NAME, "openvino")
        with (repository / served / "configs" / "arcface-server.pbtxt").open("a") as config:
            config.write(FLOAT32)
        insightface = get_embedding_backend(
            "insightface",
            "cpu",
            embedding_source=str(source),
            embedding_model=NAME,
            embedding_model_repository=str(repository),
        )
        flags = ["--model-control-mode=explicit", f"--load-model={served}"]
        with (
            LocalTriton(repository, flags=flags) as server,
            EmbeddingClient(server.grpc_url, served) as client,
        ):
            systems: dict[str, Callable[[Crops], Embeddings]] = {
                BASELINE: insightface.encode,
                "ONNX Runtime": OnnxRuntime(path, open_session(path, entries=ENTRIES)).embed,
                "OpenVINO": OpenVino(path, precision="fp32").embed,
                "OpenVINO through Triton": client.encode,
            }
            rows = [row for size in arguments.batches for row in _rows(systems, size, arguments.turns)]
    table = {
        "title": f"{network(arguments.depth)} in float32",
        "note": "What a processor without bfloat16 would do. Ratio: to InsightFace; median of "
        f"{arguments.turns} pairs of calls.",
        "rows": rows,
    }
    write(arguments.output, f"float32-{arguments.depth}", tables=[table])
    return 0


def _rows(
    systems: Mapping[str, Callable[[Crops], Embeddings]], size: int, turns: int
) -> Iterator[dict[str, Any]]:
    """Let the systems take turns at one batch size; gives a row of figures for each."""
    crops = generated_samples(size).crops
    taken: dict[str, list[float]] = {name: [] for name in systems}
    for turn in track(range(turns), f"batch {size}", transient=True):
        first = turn % len(systems)
        for name in [*systems][first:] + [*systems][:first]:
            systems[name](crops[:1])  # wakes its threads
            began = time.perf_counter()
            systems[name](crops)
            taken[name].append(time.perf_counter() - began)
    expected = systems[BASELINE](golden_crops())
    for name, seconds in taken.items():
        ratios = [base / own for base, own in zip(taken[BASELINE], seconds, strict=True)]
        drift = max(0, largest_drift(expected, systems[name](golden_crops())))
        yield {
            "system": name,
            "batch": size,
            "faces a second": round(size / statistics.median(seconds), 1),
            "ratio": round(statistics.median(ratios), 2),
            "drift": float(f"{drift:.0e}"),
        }


if __name__ == "__main__":
    sys.exit(main())
