"""Sibling models as a release has them; on a CPU a second ONNX model stands in for the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from tritonclient import grpc as tritonclient

from arcface_client.backend import EmbeddingBackend, Served, Source
from arcface_client.contract import Crops, Embeddings
from arcface_client.diagnostics import Diagnostics
from arcface_client.job import Job
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_client.selection.rhythm import BreakerLimits, Rhythm
from arcface_server import LocalTriton
from tiny import tiny_serving_graph, write_tiny_repository

NAME = "tiny"
PLAN = "tiny_trt"
ONNX = "tiny_onnx"
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
"""Flags of a server whose models can be loaded and unloaded."""

QUICK = Rhythm(
    recheck_s=0.1,
    liveness_s=0.5,
    refused_again_s=0.2,
    breaker=BreakerLimits(wait_s=0.1, settle_s=0.3),
)
"""A rhythm that tests need not wait for."""


def write_siblings(repository: Path, **settings: Any) -> Path:
    """Write ``tiny_trt`` and ``tiny_onnx`` of the same projection; the settings are those of ``tiny``."""
    for model in (PLAN, ONNX):
        write_tiny_repository(repository, model, **settings)
    return repository


class InThisProcess(EmbeddingBackend):
    """The tiny model of a release, in this process: what a last resort is."""

    def __init__(self, folder: Path, release: int | None, *, skew: float = 0.0) -> None:
        self.release = release or 1
        self.crops = 0
        path = folder / f"last-resort-{self.release}-{skew}.onnx"
        onnx.save(tiny_serving_graph(self.release, skew=skew), path)
        self._runtime = OnnxRuntime(path)

    def ensure_ready(self) -> None:
        pass

    def diagnostics(self) -> Diagnostics:
        return Diagnostics(backend="onnxruntime", model=ONNX, version=self.release)

    def close(self) -> None:
        self._runtime.close()

    def run(self, job: Job) -> Served:
        missing = job.missing
        for part in job.parts(32):
            job.deadline.remaining_s()
            job.fill(part, self._runtime.embed(job.crops[part]))
        self.crops += missing
        return Served((Source("onnxruntime", ONNX, self.release, "this process", missing),))


def tiny_embeddings(folder: Path, crops: Crops, seed: int = 1) -> Embeddings:
    """Embeddings of crops by the tiny model of a seed."""
    path = folder / f"tiny-{seed}.onnx"
    onnx.save(tiny_serving_graph(seed), path)
    return OnnxRuntime(path).embed(crops)


def answered(server: LocalTriton) -> int:
    """How many requests a server has answered."""
    with tritonclient.InferenceServerClient(server.grpc_url) as client:
        models = client.get_inference_statistics().model_stats
    return sum(int(model.inference_stats.success.count) for model in models)
