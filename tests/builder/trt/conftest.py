"""What plans are made of: serving graphs, made once, and a repository and a store of each test's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from arcface_builder.check import crops
from arcface_builder.plan_request import PlanRequest
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.onnx_version import find_onnx
from arcface_builder.store import LocalStore, PlanStore
from arcface_builder.trt.options import BuildOptions
from support.absent_gpu import AbsentGpu


@pytest.fixture
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare plans on as many crops as the largest batch holds; the check's own tests use all of them."""
    monkeypatch.setattr(crops, "LEAST_CROPS", 32)


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
        calibration=crops.noise(32),
        source=OnnxFile(source),
    )


@pytest.fixture
def elsewhere(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "elsewhere")
