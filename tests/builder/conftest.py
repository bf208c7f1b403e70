"""Networks, what is built from them, and an S3 server, made once for all tests."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.check import crops
from arcface_builder.compile import PlanRequest
from arcface_builder.repository.publish import ModelRepository, find_onnx
from arcface_builder.source import iresnet, synthetic
from arcface_builder.source.load import OnnxFile, Synthetic
from arcface_builder.source.model import SourceModel
from arcface_builder.store.local import LocalStore
from arcface_builder.store.plan_store import PlanStore
from arcface_builder.trt.options import BuildOptions
from support.absent_gpu import AbsentGpu
from support.exports import small_arcface
from support.s3_server import S3Server


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source model, and a repository with what was built of it."""
    folder = tmp_path_factory.mktemp("built")
    onnx.save_model(small_arcface(), folder / "source.onnx")
    build(OnnxFile(folder / "source.onnx"), name="small", repository=folder / "models")
    return folder


@pytest.fixture(scope="session")
def half_graph() -> bytes:
    """The serving graph of an IResNet-18 with half of its channels, which TensorRT builds for a while."""
    with pytest.MonkeyPatch.context() as patch:
        _make_thin(patch, 2)
        return bytes(Synthetic("r18").load().serving_graph().SerializeToString())


@pytest.fixture(scope="session")
def small_source(built: Path) -> SourceModel:
    """A network with every structure of an IResNet's, of the size of a photograph."""
    return OnnxFile(built / "source.onnx").load()


@pytest.fixture(scope="session")
def small_graph(small_source: SourceModel) -> bytes:
    """Its serving graph."""
    return bytes(small_source.serving_graph().SerializeToString())


@pytest.fixture(scope="session")
def trt() -> ModuleType:
    """TensorRT 11's API, which builds without a GPU."""
    reason = "tensorrt_rtx is not installed (it has wheels for Linux on x86-64 alone)"
    return pytest.importorskip("tensorrt_rtx", reason=reason)  # type: ignore[no-any-return]


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
    graph = find_onnx(repository, "small").content()
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


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let IResNets have an eighth of their channels, and synthetic ones be measured on few crops: quick."""
    _make_thin(monkeypatch, 8)


def _make_thin(patch: pytest.MonkeyPatch, divisor: int) -> None:
    channels = tuple(count // divisor for count in iresnet.CHANNELS)
    for module in (iresnet, synthetic):
        patch.setattr(module, "CHANNELS", channels)
    patch.setattr(iresnet, "FLAT_SIZE", iresnet.FLAT_SIZE // divisor)
    for name, value in {"_FACES": 5, "_TEXTURES": 2, "_NOISES": 1, "_COMMON_DIRECTIONS": 4}.items():
        patch.setattr(synthetic, name, value)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        _set_aws_environment(patch)
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's web server tells every request
        with S3Server() as server:
            yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server with nothing in it but an empty bucket ``plans``, and credentials for it."""
    _set_aws_environment(monkeypatch)
    s3_server.empty()
    s3_server.client.create_bucket(Bucket="plans")
    return s3_server


def _set_aws_environment(patch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("AWS_"):
            patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", "someone")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
