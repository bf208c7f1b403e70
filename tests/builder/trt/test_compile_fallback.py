"""Precisions that are refused, and what is built in their place."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from arcface_builder.compile import compile_plan
from arcface_builder.errors import PrecisionError, RepositoryError, ServedModelError
from arcface_builder.plan_request import PlanRequest
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.store import PlanStore
from arcface_builder.trt.options import BuildOptions
from support.absent_gpu import AbsentGpu, unable

pytestmark = pytest.mark.usefixtures("few_crops")


def test_a_plan_that_is_there_as_a_fallback_is_found_again(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    falling, exact = replace(request_, fallback=True), replace(gpu, runs_in="fp32")
    compile_plan(falling, exact, store, repository)

    assert not compile_plan(falling, exact, store, repository).added.is_new


@pytest.mark.parametrize(("precision", "instead"), [("tf32", "fp32"), ("bf16", "fp16")])
def test_a_precision_that_the_gpu_lacks_is_refused_before_anything_is_built(
    precision: str,
    instead: str,
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
) -> None:
    turing = replace(unable(gpu), sm="75", target_sm="75", runs_in="fp32")
    request = replace(request_, options=BuildOptions(precision=precision))
    stages: list[str] = []

    with pytest.raises(
        PrecisionError,
        match=f"{precision} needs a GPU of sm80 or newer, and this one is of sm75; use {instead}",
    ):
        compile_plan(request, turing, store, repository, report=lambda stage, done: stages.append(stage))

    assert stages == []


def test_in_place_of_a_precision_that_the_gpu_lacks_the_next_one_is_built(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    turing = replace(gpu, sm="75", runs_in="fp32")
    request = replace(request_, options=BuildOptions(precision="bf16"), fallback=True)

    compiled = compile_plan(request, turing, store, repository)

    assert compiled.added.path.name == "small-fp32-sm75.plan"
    assert compiled.manifest.refusals == (
        "bf16 was refused: bf16 needs a GPU of sm80 or newer, and this one is of sm75; use fp16.",
    )


def test_no_fallback_is_built_where_a_plan_is_that_was_asked_for(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    exact = replace(gpu, runs_in="fp32")
    compile_plan(replace(request_, options=BuildOptions(precision="fp32")), exact, store, repository)

    with pytest.raises(RepositoryError, match=r"has a plan for sm86 already, small-fp32-sm86\.plan \(and"):
        compile_plan(replace(request_, fallback=True), unable(exact), store, repository)


def test_no_fallback_is_built_where_a_plan_is_in_place_of_another_precision(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    exact = replace(gpu, runs_in="fp32")
    compile_plan(replace(request_, fallback=True), exact, store, repository)  # tf32 in place of fp16
    bf16 = replace(request_, options=BuildOptions(precision="bf16"), fallback=True)

    with pytest.raises(RepositoryError, match=r"has a plan for sm86 already, small-tf32-sm86\.plan \(and"):
        compile_plan(bf16, unable(exact), store, repository)


def test_a_precision_that_the_gpu_lacks_is_no_fallback(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    turing = replace(gpu, sm="75", runs_in="fp32")  # TensorRT-RTX builds no fp32 for Turing

    compiled = compile_plan(replace(request_, fallback=True), turing, store, repository)

    assert compiled.added.path.name == "small-fp32-sm75.plan"
    (refusal,) = compiled.manifest.refusals
    assert refusal.startswith("fp16 was refused")


def test_a_plan_that_runs_in_another_precision_is_refused(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    with pytest.raises(
        PrecisionError, match="The plan named fp16 runs its convolutions otherwise: 2 in fp32"
    ):
        compile_plan(request_, replace(gpu, runs_in="fp32"), store, repository)


def test_the_next_more_exact_precision_is_built_where_one_is_refused(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    # An fp32 plan is twice as large as an fp16 one, and the absent GPU runs everything in fp32.
    compiled = compile_plan(replace(request_, fallback=True), replace(gpu, runs_in="fp32"), store, repository)

    assert compiled.manifest.identity.precision == "tf32"
    assert compiled.added.path.name == "small-tf32-sm86.plan"
    assert compiled.manifest.refusals[0].startswith("fp16 was refused: The plan named fp16 runs")


def test_that_a_plan_is_a_fallback_is_recorded_where_it_was_stored_before_too(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    exact = replace(gpu, runs_in="fp32")
    tf32 = replace(request_, options=BuildOptions(precision="tf32"))
    stored = compile_plan(tf32, exact, store, ModelRepository(store.local.root / "other")).manifest

    compiled = compile_plan(replace(request_, fallback=True), exact, store, repository)

    assert compiled.from_store
    assert compiled.manifest == replace(stored, refusals=compiled.manifest.refusals)
    record = json.loads((repository.root / "small_trt-1-sm86.manifest.json").read_text())
    (refusal,) = record["refusals"]
    assert refusal.startswith("fp16 was refused: The plan named fp16 runs")


def test_a_blind_check_does_not_fall_back(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    alike = np.zeros((32, 112, 112, 3), np.uint8)  # one face, 32 times

    with pytest.raises(ServedModelError, match="The accuracy check is blind"):
        compile_plan(replace(request_, calibration=alike, fallback=True), gpu, store, repository)
