from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_server import LocalTriton
from support.exports import small_arcface
from support.releases import EXPLICIT, NAME, releases_of


@pytest.fixture
def unreleased(built: Path, tmp_path: Path) -> Path:
    """Versions 1 and 2 come from one network, and none of them was ever promoted."""
    root = tmp_path / "models"
    shutil.copytree(built / "models", root)
    build(OnnxFile(built / "source.onnx"), name=NAME, repository=root)
    return root


@pytest.fixture
def repository(unreleased: Path, tmp_path: Path) -> Path:
    """Version 1 is the release; 3 comes from another network than 1 and 2."""
    releases_of(unreleased, "").promote(1, max_drift_cosine=1e-3)
    onnx.save_model(small_arcface(seed=9), tmp_path / "other.onnx")
    build(OnnxFile(tmp_path / "other.onnx"), name=NAME, repository=unreleased)
    return unreleased


@pytest.fixture
def triton(repository: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository, flags=EXPLICIT, stop_timeout_s=1) as server:
        yield server
