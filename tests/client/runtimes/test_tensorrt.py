"""What a plan's runtime can be tested for without a GPU; the rest is in tests/gpu."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from arcface_client.runtimes.tensorrt_api import api_version, create_context, error_log, scratch_bytes, start


class OldEngine:
    """The calls of TensorRT 8.5."""

    device_memory_size = 5

    def create_execution_context_without_device_memory(self) -> Any:
        return ModuleType("context")


class NewEngine:
    """The calls of TensorRT 10.1 and newer."""

    device_memory_size_v2 = 6

    def create_execution_context(self, strategy: object) -> Any:
        context: Any = ModuleType(str(strategy))
        context.set_device_memory = lambda *memory: setattr(context, "memory", memory)
        return context


def tensorrt(version: str, name: str = "tensorrt") -> Any:
    module: Any = ModuleType(name)
    module.__version__ = version
    module.ExecutionContextAllocationStrategy = ModuleType("strategies")
    module.ExecutionContextAllocationStrategy.USER_MANAGED = "user managed"
    return module


@pytest.mark.parametrize(
    ("module", "version"),
    [
        (tensorrt("8.5.3.1"), (8, 5)),
        (tensorrt("10.16.1.11"), (10, 16)),
        (tensorrt("11.1.0.106"), (11, 1)),
        (tensorrt("1.7.0.1", "tensorrt_rtx"), (11, 0)),
    ],
)
def test_the_api_is_known_by_its_version(module: ModuleType, version: tuple[int, int]) -> None:
    assert api_version(module) == version


def test_scratch_memory_is_set_with_the_calls_of_the_version() -> None:
    old, new = tensorrt("8.5.3.1"), tensorrt("10.1.0.27")
    assert scratch_bytes(old, OldEngine()) == 5
    assert scratch_bytes(new, NewEngine()) == 6
    assert create_context(old, OldEngine(), 4096, 5).device_memory == 4096
    context = create_context(new, NewEngine(), 4096, 6)
    assert (context.__name__, context.memory) == ("user managed", (4096, 6))


def test_a_tensorrt_that_cannot_start_leaves_its_reason_in_the_log() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")
    log = error_log(trt)
    runtime = start(trt.Runtime, log)
    assert runtime is not None
    assert runtime.deserialize_cuda_engine(b"no plan") is None
    assert log.last_error != "no reason given"


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs the package cuda-bindings")
    if cudart.cudaDriverGetVersion()[1]:
        pytest.skip("this machine has a driver")
    from arcface_client.runtimes import cuda

    assert cuda.device_count() == 0
