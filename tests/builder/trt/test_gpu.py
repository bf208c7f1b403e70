from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from arcface_builder.errors import NoGpuError
from arcface_builder.trt import compat
from arcface_builder.trt.gpu import gpu_at_hand


@pytest.fixture
def cudart(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA's own library, on a machine that has TensorRT and no driver."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaDriverGetVersion()[1]:
        pytest.skip("has a driver")
    monkeypatch.setattr(compat, "find_tensorrt", lambda: trt)
    return runtime


@pytest.mark.usefixtures("cudart")
def test_a_machine_without_a_driver_builds_no_plans() -> None:
    with pytest.raises(
        NoGpuError,
        match=r"CUDA finds no GPU.* --runtime openvino .*\.$|CUDA cannot be used: CUDA says ",
    ):
        gpu_at_hand()


def test_without_tensorrt_the_message_says_what_works_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    with pytest.raises(
        NoGpuError,
        match=r"TensorRT cannot be imported .* --cc \.\.\. --from-store, or use --runtime openvino .*\.$",
    ):
        gpu_at_hand()


def test_the_reason_why_tensorrt_cannot_be_imported_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libnvinfer is of another kind")

    monkeypatch.setattr("importlib.import_module", fail)

    with pytest.raises(NoGpuError, match=r"TensorRT cannot be imported \(libnvinfer is of another kind\)"):
        compat.find_tensorrt()


def test_a_driver_that_is_too_old_is_named(cudart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The error is CUDA's own: it has one for a driver that is too old and one that is not there.
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (cudart.cudaError_t.cudaSuccess, 11040))

    with pytest.raises(
        NoGpuError, match=r"driver supports CUDA 11\.4; .* needs 1\d\.\d+\. .*'cuda-bindings<12'\.$"
    ):
        gpu_at_hand()
