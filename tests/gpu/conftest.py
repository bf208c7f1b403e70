"""A real GPU with a real TensorRT, and the plans that all tests share."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.compile import compile_plan
from arcface_builder.errors import NoGpuError
from arcface_builder.repository.plans import AddedPlan
from arcface_builder.source.load import OnnxFile, Synthetic
from arcface_builder.store.local import LocalStore
from arcface_builder.store.plan_store import PlanStore
from arcface_builder.trt.gpu import Gpu, gpu_at_hand
from arcface_builder.trt.options import BuildOptions
from support.exports import small_arcface
from support.gpu_models import Model, publish

_BUILD_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(_BUILD_TIMEOUT_S))


@pytest.fixture(scope="session")
def gpu(pytestconfig: pytest.Config) -> Gpu:
    try:
        return gpu_at_hand()
    except NoGpuError as error:
        if pytestconfig.getoption("markexpr") == "gpu":  # `make test-gpu` must fail without one
            raise
        pytest.skip(f"needs a GPU and TensorRT: {error}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="session")
def store(folder: Path) -> PlanStore:
    return PlanStore(LocalStore(folder / "cache"))


@pytest.fixture(scope="session")
def small(folder: Path) -> Model:
    """A network with every structure of an IResNet, which builds in seconds."""
    onnx.save_model(small_arcface(), folder / "small.onnx")
    # Even so small a network tells crops of noise apart.
    return publish(OnnxFile(folder / "small.onnx"), "small", folder / "small", faces.noise(256))


@pytest.fixture(scope="session")
def small_options(folder: Path) -> BuildOptions:
    return BuildOptions(precision="fp32", max_batch_size=8, timing_cache=folder / "small.cache")


@pytest.fixture(scope="session")
def small_plan(gpu: Gpu, small: Model, small_options: BuildOptions, store: PlanStore) -> AddedPlan:
    return compile_plan(small.request(small_options), gpu, store, small.repository)


@pytest.fixture(scope="session")
def r18(gpu: Gpu, folder: Path) -> Model:
    return publish(Synthetic("r18"), "r18", folder / "r18")


@pytest.fixture(scope="session")
def r18_options(folder: Path) -> BuildOptions:
    return BuildOptions(precision="fp16", max_batch_size=32, timing_cache=folder / "r18.cache")


@pytest.fixture(scope="session")
def r18_plan(r18: Model, r18_options: BuildOptions, gpu: Gpu, store: PlanStore) -> AddedPlan:
    """The one long build of these tests: three minutes with TensorRT 8.5 on an H200."""
    return compile_plan(r18.request(r18_options), gpu, store, r18.repository)
