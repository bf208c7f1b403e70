"""What plans are made of: serving graphs, made once, and a repository and a store of each test's own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import onnx
import pytest

from absent_gpu import AbsentGpu
from arcface_builder import faces
from arcface_builder.build import build
from arcface_builder.compile import PlanRequest
from arcface_builder.onnx_version import find_onnx
from arcface_builder.plans.builder import BuildOptions
from arcface_builder.repository import ModelRepository
from arcface_builder.serving_graph import serving_graph
from arcface_builder.source_model import SourceModel
from arcface_builder.sources import OnnxFile
from arcface_builder.store import LocalStore, PlanStore
from exports import small_arcface


@pytest.fixture(scope="session")
def r18_graph(r18: SourceModel) -> bytes:
    """The serving graph of a synthetic IResNet-18."""
    return bytes(serving_graph(r18.mended, r18.normalisation, metadata={}).SerializeToString())


@pytest.fixture(scope="session")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    """A network with every structure of an IResNet's, of the size of a photograph."""
    path = tmp_path_factory.mktemp("small") / "source.onnx"
    onnx.save_model(small_arcface(), path)
    return OnnxFile(path).load()


@pytest.fixture(scope="session")
def small_graph(small_source: SourceModel) -> bytes:
    """Its serving graph."""
    graph = serving_graph(small_source.mended, small_source.normalisation, metadata={})
    return bytes(graph.SerializeToString())


@pytest.fixture(scope="session")
def trt() -> ModuleType:
    """TensorRT 11's API, which builds without a GPU."""
    reason = "tensorrt_rtx is not installed (it has wheels for Linux on x86-64 alone)"
    return pytest.importorskip("tensorrt_rtx", reason=reason)  # type: ignore[no-any-return]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    onnx.save_model(small_arcface(), path)
    return path


@pytest.fixture
def repository(source: Path, tmp_path: Path) -> ModelRepository:
    build(OnnxFile(source), name="small", repository=tmp_path / "models")
    return ModelRepository(tmp_path / "models")


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    return PlanStore(LocalStore(tmp_path / "cache"))


@pytest.fixture
def gpu(trt: ModuleType, repository: ModelRepository) -> AbsentGpu:
    graph = find_onnx(repository, "small").content
    return AbsentGpu(trt, sm="86", name="absent", driver_version="13.0", target_sm="86", graph=graph)


@pytest.fixture
def request_(repository: ModelRepository, source: Path) -> PlanRequest:
    return PlanRequest(
        onnx=find_onnx(repository, "small"),
        options=BuildOptions(),
        calibration=faces.noise(256),
        source=OnnxFile(source),
    )
