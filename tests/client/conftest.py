"""One real Triton for all tests that do it no harm; a model repository as the builder leaves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.contract import Crops, Embeddings
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server import LocalTriton
from support.exports import save_for_insightface
from support.tiny import tiny_serving_graph, write_tiny_repository

OTHER_TENSORS = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""

OTHER_TENSORS_CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "data" data_type: TYPE_FP32 dims: [3, 112, 112] }
output { name: "fc1" data_type: TYPE_FP32 dims: [512] }
instance_group { kind: KIND_CPU }
"""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: tiny_onnx in two versions, slow_onnx, narrow_onnx, broken_onnx, and one with other tensors."""
    path = tmp_path_factory.mktemp("repository")
    write_tiny_repository(path, versions=(1, 2))
    write_tiny_repository(path, "slow_onnx", max_batch_size=2, work=30)
    write_tiny_repository(path, "narrow_onnx", dim=128)
    broken = write_tiny_repository(path, "broken_onnx")
    (broken / "1" / "model.onnx").write_bytes(b"no model")
    other = path / "other"
    (other / "1").mkdir(parents=True)
    (other / "1" / "model.py").write_text(OTHER_TENSORS)
    (other / "config.pbtxt").write_text(OTHER_TENSORS_CONFIG)
    return path


@pytest.fixture(scope="session")
def triton(repository: Path) -> Iterator[LocalTriton]:
    # A stop would otherwise wait for requests to slow_onnx whose callers have gone.
    with LocalTriton(repository, stop_timeout_s=1) as server:
        yield server


@pytest.fixture(scope="session")
def crops() -> Crops:
    return np.random.default_rng(7).integers(0, 256, (100, 112, 112, 3), np.uint8)


@pytest.fixture(scope="session")
def expected(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    """Embeddings of the crops by version 2 of tiny_onnx, in this process."""
    path = tmp_path_factory.mktemp("reference") / "model.onnx"
    path.write_bytes(tiny_serving_graph(seed=2).SerializeToString())
    return OnnxRuntime(path).embed(crops)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``source-0.onnx``, and ``models`` with version 1 of small_onnx; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    build(OnnxFile(save_for_insightface(folder)), name="small", repository=folder / "models")
    return folder


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    """A copy of the repository, to do what one likes with."""
    return shutil.copytree(built / "models", tmp_path / "models")
