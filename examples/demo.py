"""Build a model, serve it with a real Triton, embed a photograph's faces, compare with InsightFace.

Run it with ``make demo``, or with your own network: ``make demo ONNX=glintr100.onnx``. The results are in
``demo_output/``.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from insightface.model_zoo.arcface_onnx import ArcFaceONNX

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile, Source, Synthetic
from arcface_client import EmbeddingClient
from arcface_client.contract import Crops, Embeddings
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server import LocalTriton
from photograph import face_crops
from similarity import similarity_figure

OUTPUT = Path("demo_output")
SPEED_CROPS = 48
"""Crops in the measurement of speed: enough for a figure, few enough for a laptop."""


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx-path", type=Path, help="your network (default: synthetic weights)")
    path: Path | None = parser.parse_args().onnx_path
    source: Source = Synthetic("r50") if path is None else OnnxFile(path)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    crops = face_crops()
    many = np.resize(crops, (SPEED_CROPS, *crops.shape[1:]))

    what = "an IResNet-50 with synthetic weights" if path is None else str(path)
    step(f"Building {what} into {OUTPUT / 'model_repository'}")
    built = build(source, name="arcface", repository=OUTPUT / "model_repository")
    source_path = OUTPUT / "source.onnx"
    source.load().save(source_path)

    step("Embedding the faces in this process: InsightFace on the source, ONNX Runtime on the model built")
    insightface = ArcFaceONNX(str(source_path))
    insightface.prepare(ctx_id=-1)
    embed: dict[str, Callable[[Crops], Embeddings]] = {
        "InsightFace get_feat": lambda batch: unit(insightface.get_feat(list(batch))),
        "ONNX Runtime": OnnxRuntime(built.path / "model.onnx").embed,
    }
    results = {name: (run(crops), faces_per_second(run, many)) for name, run in embed.items()}

    step("Starting Triton and embedding them through it")
    with (
        LocalTriton(OUTPUT / "model_repository") as server,
        EmbeddingClient(server.grpc_url, model=built.model) as client,
    ):
        results["Triton"] = client.encode(crops), faces_per_second(client.encode, many)

    print_table(results)
    picture = OUTPUT / "similarity.png"
    similarity_figure(crops, results["Triton"][0]).savefig(picture, dpi=120)
    print(f"The crops and their similarities: {picture}")
    if path is None:
        print("The weights are random: the figures show that all ways agree, not who is who.")


def step(text: str) -> None:
    """Print what comes next."""
    print(f"* {text}", flush=True)


def unit(features: Embeddings) -> Embeddings:
    """Scale rows to length one."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)  # type: ignore[no-any-return]


def faces_per_second(run: Callable[[Crops], Embeddings], crops: Crops) -> float:
    """Time one pass over the crops; the comparison before it was the warm-up."""
    started = time.perf_counter()
    run(crops)
    return len(crops) / (time.perf_counter() - started)


def print_table(results: Mapping[str, tuple[Embeddings, float]]) -> None:
    """Print drift from InsightFace, and speed, for each way."""
    reference, _ = results["InsightFace get_feat"]
    print(f"\n{'':24}{'largest drift':>16}{'faces a second':>18}")
    for name, (embeddings, speed) in results.items():
        drift = float((1 - (embeddings.astype(np.float64) * reference).sum(axis=1)).max())
        print(f"{name:24}{'-' if embeddings is reference else f'{drift:.1e}':>16}{speed:18.1f}")
    print("(drift is 1 - cosine similarity with InsightFace's embedding of the same face)\n")


if __name__ == "__main__":
    main()
