"""A fleet's repository out of plans that are stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arcface_builder.compile import PlanRequest, compile_plan
from arcface_builder.errors import CompileError
from arcface_builder.fleet import assemble
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.store.plan_store import PlanStore, open_store
from arcface_builder.trt.options import BuildOptions
from support.absent_gpu import AbsentGpu
from support.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("few_crops")


def build_for(sms: list[str], request: PlanRequest, gpu: AbsentGpu, store: PlanStore) -> None:
    for sm in sms:
        there = ModelRepository(store.local.root / f"built for {sm} on {gpu.name}")
        compile_plan(request, replace(gpu, sm=sm, target_sm=sm), store, there)


def test_a_fleet_takes_the_exact_plan_of_each_architecture_or_says_how_to_build_what_is_missing(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    build_for(["86", "89"], request_, gpu, store)
    version = gpu.trt.__version__
    missing = (
        rf"has no fp16 plan of small version 1 for sm90 by TensorRT {version}, linux-\w+; "
        "run `arcface-builder compile --precision fp16` on such a GPU first"
    )

    with pytest.raises(CompileError, match=missing):
        assemble(request_, ["8.6", "9.0"], store, repository)
    assert not (repository.root / "small_trt").exists()
    for other in (
        replace(request_, options=BuildOptions(max_batch_size=64)),
        replace(request_, max_drift_cosine=0.0005),
    ):
        with pytest.raises(CompileError, match="has no fp16 plan of small version 1 for sm86, sm89"):
            assemble(other, ["8.6", "8.9"], store, repository)
    with pytest.raises(CompileError, match=r"for sm86 by TensorRT 8\.5\.3\.1"):
        assemble(request_, ["8.6"], store, repository, tensorrt_version="8.5.3.1")
    with pytest.raises(CompileError, match=r"for sm86 by TensorRT .*, linux-riscv64;"):
        assemble(request_, ["8.6"], store, repository, platform="linux-riscv64")

    added = assemble(request_, ["8.6", "8.9"], store, repository)

    assert [plan.path.name for plan in added] == ["small-fp16-sm86.plan", "small-fp16-sm89.plan"]


def test_a_fleet_takes_plans_from_the_bucket(
    request_: PlanRequest, gpu: AbsentGpu, repository: ModelRepository, tmp_path: Path, s3: S3Server
) -> None:
    built, here = (
        open_store("plans", endpoint_url=s3.url, cache_dir=tmp_path / name) for name in ("built", "here")
    )
    build_for(["86"], request_, gpu, built)

    (added,) = assemble(request_, ["8.6"], here, repository)

    assert added.is_new


def test_a_fleet_keeps_the_published_plans_and_their_tensorrt_and_platform(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_plan(request_, gpu, store, repository)
    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "aarch64")
        build_for(["89"], request_, gpu, store)
        with pytest.raises(CompileError, match="for sm89 by TensorRT"):
            assemble(request_, ["8.6", "8.9"], store, repository)

    build_for(["89"], request_, replace(gpu, name="other"), store)
    old, new = assemble(request_, ["8.6", "8.9"], store, repository)
    assert (old.is_new, new.is_new) == (False, True)


def test_a_fleet_of_plans_for_one_gpu_model_each_is_assembled_with_a_warning(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for_one = replace(request_, options=BuildOptions(hardware_compatible=False))
    build_for(["86"], for_one, gpu, store)

    with pytest.raises(CompileError, match="has no fp16 plan"):
        assemble(request_, ["8.6"], store, repository)
    assemble(for_one, ["8.6"], store, repository)

    assert "small-fp16-sm86.plan is for absent only, not for every GPU of sm86" in caplog.text
