"""Models in this process for tests: replicas of small files, some of which fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from arcface_client.backends.local import LocalModel
from arcface_client.contract import Crops, Embeddings
from arcface_client.failover.replica import Origin
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.models.golden import GoldenReference
from arcface_client.observability.diagnostics import Diagnostics
from arcface_client.runtimes.base import Runtime
from arcface_client.runtimes.onnxruntime import OnnxRuntime

A, B = EmbeddingSpace(source_sha256="a" * 64), EmbeddingSpace(source_sha256="b" * 64)


def local(
    path: Path,
    *,
    space: EmbeddingSpace = A,
    golden: Embeddings | None = None,
    batch_size: int = 8,
    runtime: Callable[[Path], Runtime] = OnnxRuntime,
) -> Origin:
    def load(*_: object) -> LocalModel:
        known = Diagnostics(backend="onnxruntime", model=path.stem, version=1, batch_size=batch_size)
        reference = None if golden is None else GoldenReference(golden, space)
        return LocalModel(runtime(path), known, space, reference)

    return Origin(path.stem, load)


def missing() -> Origin:
    return local(Path("/nowhere/missing.onnx"))


def embed(path: Path, crops: Crops) -> Embeddings:
    return OnnxRuntime(path).embed(crops)


def poisoned(crops: Crops, at: int) -> Crops:
    """Crops of which a single one makes a graph with poison fail."""
    safe = crops.copy()
    safe[:, 0, 0, 0] = 0
    safe[at, 0, 0, 0] = 255
    return safe
