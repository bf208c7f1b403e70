"""Models in this process for tests: candidates of small files, some of which fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from arcface_client.backends.local_model import LocalCandidate, LocalModel
from arcface_client.contract import Crops, Embeddings
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.runtimes.base import Runtime
from arcface_client.runtimes.onnxruntime import OnnxRuntime

A, B = EmbeddingSpace(source_sha256="a" * 64), EmbeddingSpace(source_sha256="b" * 64)


def candidate(
    path: Path,
    *,
    identity: EmbeddingSpace = A,
    golden: Embeddings | None = None,
    batch_size: int = 8,
    runtime: Callable[[Path], Runtime] = OnnxRuntime,
) -> LocalCandidate:
    def load(_: EmbeddingSpace | None) -> LocalModel:
        return LocalModel(
            runtime=runtime(path),
            backend="onnxruntime",
            model=path.stem,
            version=1,
            path=path,
            batch_size=batch_size,
            identity=identity,
            golden=golden,
            precision="fp32",
        )

    return LocalCandidate(path.stem, load)


def missing(name: str = "missing") -> LocalCandidate:
    return candidate(Path(f"/nowhere/{name}.onnx"))


def embed(path: Path, crops: Crops) -> Embeddings:
    return OnnxRuntime(path).embed(crops)


def poisoned(crops: Crops, at: int) -> Crops:
    """Crops of which one alone lets a graph with poison fail."""
    safe = crops.copy()
    safe[:, 0, 0, 0] = 0
    safe[at, 0, 0, 0] = 255
    return safe
