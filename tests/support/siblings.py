"""Sibling models as a release has them; on a CPU a second ONNX model stands in for the plan."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from tritonclient import grpc as tritonclient

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.local import LocalModel
from arcface_client.contract import Crops, Embeddings
from arcface_client.failover.replica import Intervals, Origin
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.models.golden import GoldenReference
from arcface_client.models.plan_manifest import PlanManifest
from arcface_client.models.repository import LocalModels
from arcface_client.observability.diagnostics import Diagnostics, Served
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_client.triton.limits import RequestLimits
from arcface_server import LocalTriton
from support.processes import wait_until
from support.tiny import tiny_serving_graph, write_tiny_repository

Pair = tuple[LocalTriton, LocalTriton]

NAME = "tiny"
PLAN = "tiny_trt"
ONNX = "tiny_onnx"
LOCAL = "tiny_onnx in this process"
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
"""Flags of a server whose models can be loaded and unloaded."""

QUICK = Intervals(recheck_s=0.1, liveness_s=0.5, refused_again_s=0.2, cooldown_s=0.3)
"""Intervals that tests need not wait for."""


def write_siblings(repository: Path, **settings: Any) -> Path:
    """Write ``tiny_trt`` and ``tiny_onnx`` of the same projection; the settings are those of ``tiny``."""
    for model in (PLAN, ONNX):
        write_tiny_repository(repository, model, **settings)
    return repository


def local_tiny(folder: Path, *, skew: float = 0.0) -> Origin:
    """The tiny model in this process, as the last replica of a pool."""

    def load(*_: object) -> LocalModel:
        path = folder / f"local-{skew}.onnx"
        onnx.save(tiny_serving_graph(1, skew=skew), path)
        known = Diagnostics(backend="onnxruntime", model=ONNX, version=1)
        return LocalModel(OnnxRuntime(path), known, EmbeddingSpace())

    return Origin(LOCAL, load)


def tiny_embeddings(folder: Path, crops: Crops) -> Embeddings:
    """Embeddings of crops by version 1 of the tiny model."""
    path = folder / "tiny.onnx"
    onnx.save(tiny_serving_graph(1), path)
    return OnnxRuntime(path).embed(crops)


def answered(server: LocalTriton) -> int:
    """How many requests a server has answered."""
    with tritonclient.InferenceServerClient(server.grpc_url) as client:
        models = client.get_inference_statistics().model_stats
    return sum(int(model.inference_stats.success.count) for model in models)


def urls(pair: Pair) -> list[str]:
    """The addresses of a pair of servers."""
    return [server.grpc_url for server in pair]


def serving(embedder: EmbeddingBackend) -> str | None:
    """The candidate that gets every call; None where there is none."""
    states = {one.state: one.candidate for one in embedder.diagnostics().candidates}
    return states.get("serving")


@contextmanager
def stopped(server: LocalTriton) -> Iterator[None]:
    """Keep a server from running, as one that hangs."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def in_the_middle(
    embedder: EmbeddingBackend, crops: Crops, happens: int, server: LocalTriton
) -> tuple[Embeddings, Served]:
    """Embed crops, and send a server a signal once some of them were answered."""
    before = answered(server)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(embedder.encode, crops, timeout_s=30, return_source=True)
        # More than the client keeps under way, so that some answers have reached it.
        wait_until(lambda: answered(server) > before + 2 * RequestLimits.max_in_flight)
        os.kill(server.pid, happens)
        return call.result()


class Recorded(LocalModels):
    """Records of a model repository, as a function gives them."""

    def __init__(self, golden: Callable[[str, int], GoldenReference | None]) -> None:
        super().__init__(Path("nowhere"))
        self._golden = golden

    def golden(self, model: str, version: int) -> GoldenReference | None:
        return self._golden(model, version)

    def only_plan(self, model: str, version: int) -> PlanManifest | None:
        return None
