"""Sources of every kind with the same crops, and an embedder that is quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.pooled import PooledBackend
from arcface_client.contract import Crops
from support.image_files import encoded
from support.local_models import local
from support.tiny import tiny_serving_graph


@pytest.fixture(scope="session")
def files(crops: Crops) -> dict[str, bytes]:
    """Image files by their paths below a folder, in the order of a search."""
    names = [f"{index:03}.png" for index in range(10)] + [f"p{index:02}/a.png" for index in range(10, 20)]
    return {name: encoded(crop) for name, crop in zip(names, crops, strict=False)}


@pytest.fixture
def folder(files: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in files.items():
        path = tmp_path / "crops" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
    return tmp_path / "crops"


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bulk") / "tiny.onnx"
    path.write_bytes(tiny_serving_graph(seed=2).SerializeToString())
    return path


@pytest.fixture
def embedder(tiny_path: Path) -> Iterator[EmbeddingBackend]:
    with PooledBackend("onnxruntime", [local(tiny_path)]) as backend:
        backend.ensure_ready()
        yield backend
