"""A model repository as the builder leaves it, and the source that it was built from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.sources import OnnxFile
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.factory import get_embedding_backend
from exports import pytorch_pack, small_arcface

Make = Callable[..., EmbeddingBackend]


def save_source(folder: Path, seed: int = 0) -> Path:
    """A source model as InsightFace's packs hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"source-{seed}.onnx"
    onnx.save_model(pytorch_pack(small_arcface(seed)), path)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``source-0.onnx``, and ``models`` with version 1 of small_onnx; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    build(OnnxFile(save_source(folder)), name="small", repository=folder / "models")
    return folder


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    """A copy of the repository, to do what one likes with."""
    return shutil.copytree(built / "models", tmp_path / "models")


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
