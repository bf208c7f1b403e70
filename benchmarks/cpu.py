"""Ways to embed on a CPU, in one run: InsightFace, ONNX Runtime and OpenVINO, in process and through Triton.

Builds a network with synthetic weights, serves it, and measures as `arcface-client benchmark` does.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from arcface_builder.build import build
from arcface_builder.cli.app import main as compile_model
from arcface_builder.source.load import Synthetic
from arcface_client.cli.terminal import progress
from arcface_client.evaluation.benchmark import Options, benchmark
from arcface_client.models.naming import onnx_model, sibling_model
from arcface_client.models.repository import LocalModels
from arcface_client.settings import load_pipeline_settings
from arcface_server import LocalTriton
from script import COMMAND, network, numbers, usual_flags, write


def main() -> int:
    """Run the benchmark, and write its JSON."""
    parser = usual_flags(__doc__)
    parser.add_argument("--batches", type=numbers, default="1,8,32", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--turn-s", type=float, default=2.0, help="default: %(default)s")
    arguments = parser.parse_args()
    name = f"arcface_{arguments.depth}"
    with tempfile.TemporaryDirectory() as folder:
        source, repository = Path(folder, "source.onnx"), Path(folder, "repository")
        synthetic = Synthetic(arguments.depth)
        synthetic.load().save(source)
        started = time.perf_counter()
        build(synthetic, name=name, repository=repository)
        build_s = time.perf_counter() - started
        if compile_model(["compile", f"--name={name}", f"--repository={repository}", "--runtime=openvino"]):
            return 1
        sibling = LocalModels(repository).sibling(sibling_model(name, "openvino")).manifest
        started = time.perf_counter()
        with LocalTriton(repository) as server, progress("benchmark") as shown:
            server_s = time.perf_counter() - started
            settings = load_pipeline_settings(
                environment={},
                arguments={
                    "triton.url": server.grpc_url,
                    "embedding.model": name,
                    "embedding.model_repository": repository,
                    "embedding.source": str(source),
                },
            )
            options = Options(
                systems=("insightface", "onnxruntime", "openvino", onnx_model(name), sibling.model),
                batch_sizes=arguments.batches,
                turns=arguments.turns,
                turn_s=arguments.turn_s,
                command=COMMAND,
            )
            result = benchmark(options, settings, shown)
            server_mb = resident_mb(server.pid)
    facts = [
        f"The model was built and checked in {build_s:.1f} s.",
        f"OpenVINO {sibling.runtime_version} computes in {sibling.precision} on this processor.",
        f"Triton with both models was ready after {server_s:.1f} s and took {server_mb:,.0f} MiB.",
    ]
    title = f"{network(arguments.depth)} on a CPU"
    write(arguments.output, f"cpu-{arguments.depth}", **result.to_dict(), title=title, facts=facts)
    return 1 if result.stopped or result.fell_back else 0


def resident_mb(group: int) -> float:
    """Memory of a process group in MiB; what processes share is counted once."""
    kib = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return kib / 2**10


if __name__ == "__main__":
    sys.exit(main())
