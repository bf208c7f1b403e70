"""A fleet's repository out of plans that are stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arcface_builder.check import crops as faces
from arcface_builder.compile import compile_plan
from arcface_builder.errors import CompileError
from arcface_builder.fleet import assemble
from arcface_builder.plan_request import PlanRequest
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.published import recorded_plan
from arcface_builder.store import LocalStore, PlanStore
from arcface_builder.trt.options import BuildOptions
from support.absent_gpu import AbsentGpu

pytestmark = pytest.mark.usefixtures("few_crops")


def test_a_fleet_goes_on_with_what_the_version_has(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_plan(request_, gpu, store, repository)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for sm in ("86", "89"):
        compile_plan(request_, replace(gpu, sm=sm, target_sm=sm), store, elsewhere)

    with pytest.raises(
        CompileError, match=r"without sm89 \(not taken: small-fp16-sm89\.plan: platform linux-aarch64"
    ):
        assemble(request_.onnx, request_.options, ["8.6", "8.9"], store, repository)


def test_a_fleet_keeps_what_is_published_though_another_model_of_gpu_has_a_newer_plan(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
) -> None:
    request_ = replace(request_, options=BuildOptions(hardware_compatible=False))
    a10 = compile_plan(request_, replace(gpu, name="NVIDIA A10"), store, repository).manifest
    compile_plan(request_, replace(gpu, name="NVIDIA A40"), store, elsewhere)
    compile_plan(request_, replace(gpu, sm="89", target_sm="89", name="NVIDIA L4"), store, elsewhere)

    old, new = assemble(request_.onnx, request_.options, ["8.6", "8.9"], store, repository)

    assert (old.is_new, new.is_new) == (False, True)
    kept = recorded_plan(repository, a10.identity, 1)
    assert kept is not None
    assert kept.manifest == a10


def test_why_the_published_plan_does_not_do_is_told(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository, tmp_path: Path
) -> None:
    compile_plan(request_, gpu, store, repository)
    empty = PlanStore(LocalStore(tmp_path / "empty"))

    with pytest.raises(CompileError, match=r"Version 1's own plan for sm86 does not do: .*max_batch_size 32"):
        assemble(request_.onnx, BuildOptions(max_batch_size=16), ["8.6"], empty, repository)
    with pytest.raises(
        CompileError, match=r"sm86 does not do: The served ONNX model drifts by .* at most 1e-15"
    ):
        assemble(request_.onnx, request_.options, ["8.6"], empty, repository, max_drift_cosine=1e-15)


def test_a_fleet_calibrates_as_the_version_does(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
) -> None:
    int8 = replace(request_, max_drift_cosine=0.05, options=BuildOptions(precision="int8"))
    gpu = replace(gpu, runs_in="int8")
    compile_plan(int8, gpu, store, repository)
    other = replace(int8, calibration=faces.noise(40))
    compile_plan(other, replace(gpu, sm="89", target_sm="89"), store, elsewhere)

    with pytest.raises(CompileError, match=r"sm89 \(not taken: small-int8-sm89\.plan: calibration"):
        assemble(int8.onnx, int8.options, ["8.9"], store, repository, max_drift_cosine=0.05)
