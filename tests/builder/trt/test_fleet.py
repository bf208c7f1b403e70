from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arcface_builder.errors import CompileError
from arcface_builder.fleet import choose
from arcface_builder.source.onnx_version import OnnxVersion
from arcface_builder.store import PlanManifest
from arcface_builder.trt.options import BUILD_REVISION, BuildOptions
from support import engines

ONNX = OnnxVersion("arcface_r100", 1, Path("model.onnx"), b"a model", "a" * 64)


def stored(
    sm: str, *, precision: str = "fp16", drift: float = 0.0003, day: int = 1, **settings: Any
) -> PlanManifest:
    identity = engines.identity(
        onnx_sha256=ONNX.sha256,
        sm=sm,
        precision=precision,
        settings=BuildOptions().settings() | {"onnxruntime": "1.23.2"} | settings,
    )
    return engines.manifest(
        of=identity,
        parity=replace(engines.PARITY, largest_drift_cosine=drift, max_drift_cosine=0.05),
        created=f"2026-11-{day:02}T20:00:00+00:00",
    )


def test_a_plan_that_passed_a_more_lenient_gate_is_not_taken() -> None:
    plans = [stored("86"), stored("89", drift=0.04)]

    assert choose(plans, ONNX, BuildOptions(), ["86", "89"], max_drift_cosine=0.05) == plans
    with pytest.raises(CompileError, match=r"without sm89 \(not taken: .*: The plan drifts by 0\.04"):
        choose(plans, ONNX, BuildOptions(), ["86", "89"], max_drift_cosine=0.001)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"hardware_compatible": False, "gpu": "NVIDIA A10"}, "hardware_compatible False, not True"),
        ({"workspace_size_mb": 512}, "workspace_size_mb 512, not 1024"),
        ({"build_revision": 0}, f"build_revision 0, not {BUILD_REVISION}"),
    ],
)
def test_a_plan_that_was_built_otherwise_is_not_taken(settings: dict[str, Any], difference: str) -> None:
    with pytest.raises(CompileError, match=rf"The store has no .* \(not taken: .*sm86\.plan: {difference}"):
        choose([stored("86", **settings)], ONNX, BuildOptions(), ["86"])


def test_an_older_plan_that_fits_is_taken_before_a_newer_one_that_does_not() -> None:
    fits, other = stored("86", day=1), stored("86", day=2, small_batch_profile=False)

    assert choose([fits, other], ONNX, BuildOptions(), ["86"]) == [fits]


def test_plans_of_several_versions_of_onnx_runtime_go_together() -> None:
    plans = [stored("86"), stored("89", onnxruntime="1.24.0")]

    assert choose(plans, ONNX, BuildOptions(), ["86", "89"]) == plans


def test_int8_plans_of_different_calibrations_are_not_mixed() -> None:
    options = BuildOptions(precision="int8")
    old86, new86 = (
        stored("86", precision="int8", day=1, calibration="aaaa"),
        stored("86", precision="int8", day=2, calibration="bbbb"),
    )
    old89 = stored("89", precision="int8", day=1, calibration="aaaa")

    assert choose([old86, new86, old89], ONNX, options, ["86", "89"]) == [old86, old89]
    assert choose([old86, new86, old89], ONNX, options, ["86"]) == [new86]
    with pytest.raises(CompileError, match="with one calibration at best, without sm89"):
        choose([new86, old89], ONNX, options, ["86", "89"])


def test_plans_that_would_do_but_not_beside_the_others_are_named() -> None:
    older, newer = stored("80"), stored("86")
    newer = replace(newer, identity=replace(newer.identity, tensorrt_version="11.1.0.106"))

    with pytest.raises(
        CompileError,
        match=r"by TensorRT 11\.1\.0\.106 .*without sm80 \(not taken: arcface_r100-fp16-sm80\.plan: "
        r"tensorrt_version 10\.16\.1\.11, not 11\.1\.0\.106\)",
    ):
        choose([newer, older], ONNX, BuildOptions(), ["80", "86"])


def test_int8_plans_of_another_calibration_are_named() -> None:
    plans = [stored("80", precision="int8", calibration="a"), stored("86", precision="int8", calibration="b")]
    other_precision = stored("80", day=3)

    with pytest.raises(
        CompileError, match=r"\(not taken: arcface_r100-int8-sm\d\d\.plan: calibration ., not .\)"
    ):
        choose([*plans, other_precision], ONNX, BuildOptions(precision="int8"), ["80", "86"])
