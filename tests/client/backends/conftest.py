"""Real servers with sibling models, and embedders of a repository that the builder made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.factory import get_embedding_backend
from arcface_client.contract import Crops, Embeddings
from arcface_server import LocalTriton
from support.siblings import EXPLICIT, tiny_embeddings, write_siblings
from support.tiny import tiny_serving_graph, write_tiny_repository

Make = Callable[..., EmbeddingBackend]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalTriton, LocalTriton]]:
    """Two servers with tiny_trt and tiny_onnx, two crops a batch, whose models can be unloaded."""
    repository = write_siblings(tmp_path_factory.mktemp("siblings"), max_batch_size=2, work=1)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(LocalTriton(repository, flags=EXPLICIT, stop_timeout_s=1)) for _ in range(2)
        )
        yield first, second


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """A server with tiny_trt and tiny_onnx, and models whose weights are wrong by more and less."""
    repository = write_siblings(tmp_path_factory.mktemp("crowd"))
    write_tiny_repository(repository, "wrong_trt", skew=1.0)
    write_tiny_repository(repository, "slight_trt", skew=0.063)
    write_tiny_repository(repository, "near_trt", skew=0.02)
    write_tiny_repository(repository, "full_trt", max_batch_size=1, work=3, queue=1)
    with LocalTriton(repository, stop_timeout_s=1) as server:
        yield server


@pytest.fixture
def make(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """``get_embedding_backend`` with the repository that was built, and nothing else around."""
    monkeypatch.chdir(tmp_path)

    def backend(*arguments: Any, **named: Any) -> EmbeddingBackend:
        settings = {
            "embedding_model": "small",
            "embedding_model_repository": built / "models",
            "embedding_source": str(built / "source-0.onnx"),
        }
        return get_embedding_backend(*arguments, **{**settings, **named})

    return backend


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny model's file, which another seed makes another model."""

    def save(name: str, seed: int = 0, *, poison: bool = False) -> Path:
        onnx.save(tiny_serving_graph(seed, poison=poison), tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    return save


@pytest.fixture(scope="module")
def many(crops: Crops) -> Crops:
    """Crops for a call that lasts."""
    return np.concatenate([crops, crops[::-1]])


@pytest.fixture(scope="module")
def truth(many: Crops, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    """The tiny model's embeddings of ``crops``."""
    return tiny_embeddings(tmp_path_factory.mktemp("truth"), many[: len(many) // 2])


@pytest.fixture(scope="module")
def many_truth(truth: Embeddings) -> Embeddings:
    """The tiny model's embeddings of ``many``."""
    return np.concatenate([truth, truth[::-1]])
