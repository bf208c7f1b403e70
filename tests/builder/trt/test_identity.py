from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from arcface_builder.source.onnx_version import OnnxVersion
from arcface_builder.store import PlanIdentity
from arcface_builder.trt.gpu import Gpu
from arcface_builder.trt.options import BUILD_REVISION, BuildOptions
from arcface_builder.trt.plan_key import plan_identity

ONNX = OnnxVersion("small", 1, Path("model.onnx"), b"a model", "a" * 64)

# Of each TensorRT just what tells whether it can build for a whole compute capability.
OLD: Any = SimpleNamespace(__version__="8.5.3.1")
AMPERE_PLUS_ALONE: Any = SimpleNamespace(
    __version__="10.8.0.43", HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS=1)
)
NEW: Any = SimpleNamespace(
    __version__="10.9.0.34", HardwareCompatibilityLevel=SimpleNamespace(SAME_COMPUTE_CAPABILITY=2)
)


def on(gpu: str, trt: Any, **options: Any) -> PlanIdentity:
    at_hand = Gpu(trt, sm="86", name=gpu, driver_version="13.0")
    return plan_identity(ONNX, BuildOptions(**options), at_hand)


@pytest.mark.parametrize("trt", [OLD, AMPERE_PLUS_ALONE])
def test_where_tensorrt_builds_for_one_gpu_model_another_model_needs_another_plan(trt: Any) -> None:
    a10, rtx = on("NVIDIA A10", trt), on("NVIDIA GeForce RTX 3090", trt)

    assert a10.settings["hardware_compatible"] is False
    assert rtx.differences(a10) == ["gpu NVIDIA A10, not NVIDIA GeForce RTX 3090"]
    assert a10 == on("NVIDIA A10", trt)


def test_a_plan_for_the_whole_compute_capability_is_the_same_for_each_gpu_of_it() -> None:
    assert on("NVIDIA A10", NEW) == on("NVIDIA GeForce RTX 3090", NEW)


def test_who_wants_no_hardware_compatibility_gets_a_plan_for_the_gpu_model() -> None:
    a10, rtx = (on(name, NEW, hardware_compatible=False) for name in ("NVIDIA A10", "RTX 3090"))

    assert a10.key != rtx.key


def test_a_plan_of_a_graph_that_is_typed_otherwise_now_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = on("NVIDIA A10", NEW)
    monkeypatch.setattr("arcface_builder.trt.options.BUILD_REVISION", BUILD_REVISION + 1)

    assert on("NVIDIA A10", NEW).key != before.key


@pytest.mark.parametrize(("precision", "told"), [("fp32", False), ("tf32", False), ("fp16", True)])
def test_onnx_runtime_counts_where_it_types_the_graph(precision: str, told: bool) -> None:
    version = on("NVIDIA A10", NEW, precision=precision).settings.get("onnxruntime")

    assert version == (onnxruntime.__version__ if told else None)
