"""What plans are made of: serving graphs, made once, and a repository and a store of each test's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.check import crops as faces
from arcface_builder.check import gate
from arcface_builder.check import reference_embeddings as standards
from arcface_builder.check.gate import Verdict, judge
from arcface_builder.check.reference import ReferenceEmbedder
from arcface_builder.check.reference_embeddings import Standard, another_model, gate_crops, standard_of
from arcface_builder.graph.serving import serving_graph
from arcface_builder.plan_request import PlanRequest
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.onnx_version import find_onnx
from arcface_builder.source.source_model import SourceModel
from arcface_builder.store import LocalStore, PlanStore
from arcface_builder.trt.options import BuildOptions
from arcface_client.contract import Crops
from arcface_client.runtimes.base import Embed
from photograph import face_crops
from support.absent_gpu import AbsentGpu
from support.embedders import embedder
from support.exports import small_arcface


@pytest.fixture(scope="session")
def r18_graph(r18: SourceModel) -> bytes:
    """The serving graph of a synthetic IResNet-18."""
    return bytes(serving_graph(r18.mended, r18.normalisation, metadata={}).SerializeToString())


@pytest.fixture(scope="session")
def small_source(built: Path) -> SourceModel:
    """A network with every structure of an IResNet's, of the size of a photograph."""
    return OnnxFile(built / "source.onnx").load()


@pytest.fixture(scope="session")
def small_graph(small_source: SourceModel) -> bytes:
    """Its serving graph."""
    graph = serving_graph(small_source.mended, small_source.normalisation, metadata={})
    return bytes(graph.SerializeToString())


@pytest.fixture(scope="session")
def crops() -> Crops:
    return gate_crops(face_crops())


@pytest.fixture(scope="session")
def standard(small_source: SourceModel, small_graph: bytes, crops: Crops) -> Standard:
    another = embedder(another_model(small_graph))
    return standard_of(ReferenceEmbedder(small_source).embed, embedder(small_graph), another, crops)


@pytest.fixture(scope="session")
def verdict_of(standard: Standard) -> Callable[[Embed], Verdict]:
    return lambda plan: judge(plan, standard, max_batch_size=32)


@pytest.fixture
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate do with as many crops as the largest batch holds; its own tests have them all."""
    for module in (gate, standards):
        monkeypatch.setattr(module, "LEAST_CROPS", 32)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source model, and a repository with what was built of it."""
    folder = tmp_path_factory.mktemp("built")
    onnx.save_model(small_arcface(), folder / "source.onnx")
    build(OnnxFile(folder / "source.onnx"), name="small", repository=folder / "models")
    return folder


@pytest.fixture
def source(built: Path, tmp_path: Path) -> Path:
    shutil.copy(built / "source.onnx", tmp_path)
    return tmp_path / "source.onnx"


@pytest.fixture
def repository(built: Path, source: Path, tmp_path: Path) -> ModelRepository:
    """A repository of the test's own, as it would be had it been built of its own ``source``."""
    shutil.copytree(built / "models", tmp_path / "models")
    record = tmp_path / "models/small_onnx-1.manifest.json"
    record.write_text(record.read_text().replace(str(built), str(source.parent)))
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
        calibration=faces.noise(32),
        source=OnnxFile(source),
    )


@pytest.fixture
def elsewhere(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "elsewhere")
