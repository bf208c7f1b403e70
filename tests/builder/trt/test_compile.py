from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.check.controls import another_model
from arcface_builder.cli.app import main
from arcface_builder.compile import Compiled, compile_plan
from arcface_builder.errors import CompileError, OptionError, ParityError, RepositoryError, ServedModelError
from arcface_builder.fleet import assemble
from arcface_builder.graph.precision import typed_graph
from arcface_builder.plan_request import PlanRequest
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.onnx_version import find_onnx
from arcface_builder.store import LocalStore, PlanStore
from arcface_builder.trt.gpu import Gpu
from arcface_builder.trt.options import BuildOptions
from arcface_client.errors import ManifestError, ModelNotFoundError
from support.absent_gpu import AbsentGpu, unable
from support.exports import small_arcface

pytestmark = pytest.mark.usefixtures("few_crops")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_plan_is_built_proved_stored_and_put_into_the_repository(
    request_: PlanRequest, gpu: Gpu, store: PlanStore, repository: ModelRepository
) -> None:
    stages: set[str] = set()

    compiled = compile_plan(request_, gpu, store, repository, report=lambda stage, done: stages.add(stage))

    assert compiled.added.path == repository.root / "small_trt/1/small-fp16-sm86.plan"
    assert not compiled.from_store
    manifest = compiled.manifest
    assert manifest.precisions_used == {"fp16": 2}
    assert manifest.parity.largest_drift_cosine < 1e-5
    assert manifest.parity.crops == 32
    assert manifest.parity.compared_with == "source file"
    assert manifest.parity.details["controls"]["another model"] > 0.001
    assert manifest.identity.tensorrt_version == gpu.trt.__version__
    assert {"Writing fp16 into the graph", "Comparing the plan with its source"} <= stages


def test_the_second_time_the_plan_comes_from_the_store(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    first = compile_plan(request_, gpu, store, repository)

    second = compile_plan(request_, gpu, store, ModelRepository(repository.root.parent / "other"))

    assert second.from_store
    assert second.manifest == first.manifest


def test_where_the_cache_is_lost_the_repositorys_own_plan_is_taken(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository, tmp_path: Path
) -> None:
    first = compile_plan(request_, gpu, store, repository)
    empty = PlanStore(LocalStore(tmp_path / "empty"))

    again = compile_plan(request_, unable(gpu), empty, repository)

    assert (again.from_store, again.added.is_new) == (True, False)
    assert again.manifest == first.manifest
    assert [manifest.identity for manifest in empty.manifests()] == [first.manifest.identity]


def test_a_plan_that_could_not_be_added_is_not_built(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    compile_plan(request_, gpu, store, repository)
    for other in (
        replace(request_, options=BuildOptions(precision="fp32")),
        replace(request_, options=BuildOptions(max_batch_size=16)),
        replace(request_, max_drift_cosine=1e-13),
    ):
        with pytest.raises(
            RepositoryError, match=r"has a plan for sm86 already, small-fp16-sm86\.plan \(and"
        ):
            compile_plan(other, unable(gpu), store, repository)


def test_a_plan_that_is_refused_is_not_stored_and_the_message_says_what_was_kept(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    wrong = replace(gpu, wrong_below=1 << 30)
    kept = store.local.root / "refused/small-fp16-sm86"

    with pytest.raises(ParityError, match=rf"The plan drifts .* Nothing was stored\. .* are in {kept}\. "):
        compile_plan(request_, wrong, store, repository)

    assert files(kept) == ["crops.npy", "graph.onnx", "settings.json"]
    assert [name for name in files(repository.root) if "trt" in name or "plan" in name] == []
    assert [name for name in files(store.local.root) if ".plan" in name] == []


def test_a_served_model_that_is_not_its_source_is_refused_before_anything_is_built(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    content = another_model(request_.onnx.content)
    request_.onnx.path.write_bytes(content)
    wrong = replace(request_, onnx=replace(request_.onnx, content=content), fallback=True)
    stages: list[str] = []

    with pytest.raises(ServedModelError, match="The served ONNX model drifts"):
        compile_plan(wrong, gpu, store, repository, report=lambda stage, done: stages.append(stage))

    assert stages == ["Writing fp16 into the graph", "Comparing the ONNX model with its source"]


def test_without_the_source_model_the_plan_is_compared_with_the_served_model(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = replace(request_, source=OnnxFile(Path("gone.onnx")))

    with caplog.at_level(logging.WARNING):
        compiled: Compiled = compile_plan(missing, gpu, store, repository)

    assert compiled.manifest.parity.compared_with == "served ONNX model"
    assert "The source model is not available" in caplog.text


def test_another_file_than_the_source_is_not_compared_with(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository, tmp_path: Path
) -> None:
    onnx.save_model(small_arcface(seed=1), tmp_path / "source.onnx")

    compiled = compile_plan(request_, gpu, store, repository)

    assert compiled.manifest.parity.compared_with == "served ONNX model"


def test_int8_without_crops_is_refused_before_anything_is_built(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    bare = replace(request_, options=BuildOptions(precision="int8"), calibration=None)

    with pytest.raises(OptionError, match="int8 needs face crops"):
        compile_plan(bare, gpu, store, repository)


def test_other_calibration_crops_make_another_int8_plan(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    int8 = replace(request_, options=BuildOptions(precision="int8"), max_drift_cosine=0.05)
    ready = replace(gpu, runs_in="int8")
    first = compile_plan(int8, ready, store, repository)

    other = replace(int8, calibration=faces.noise(32, seed=9))
    second = compile_plan(other, ready, store, ModelRepository(repository.root.parent / "other"))

    assert not second.from_store
    assert first.manifest.identity.digest != second.manifest.identity.digest


def coarse(gpu: AbsentGpu) -> AbsentGpu:
    """A GPU whose plans drift by about as much as int8 makes them."""
    return replace(gpu, graph=typed_graph(gpu.graph, "int8", calibration=faces.noise(8)))


def test_a_stored_plan_that_passed_a_more_lenient_gate_is_built_again(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lenient = replace(request_, max_drift_cosine=0.05)
    other = ModelRepository(repository.root.parent / "other")
    drift = compile_plan(lenient, coarse(gpu), store, other).manifest.parity.largest_drift_cosine
    strict = replace(request_, max_drift_cosine=drift / 2)

    with pytest.raises(ParityError, match="The plan drifts by"):
        compile_plan(strict, coarse(gpu), store, repository)
    assert compile_plan(lenient, coarse(gpu), store, other).from_store  # what is no better replaces nothing
    again = compile_plan(strict, gpu, store, repository)

    assert "small-fp16-sm86.plan in the local cache is not good enough. The plan drifts" in caplog.text
    assert not again.from_store
    assert again.manifest.parity.largest_drift_cosine < drift / 2
    assert [manifest.parity for manifest in store.manifests()] == [again.manifest.parity]
    assert compile_plan(strict, gpu, store, repository).from_store


def test_a_fleet_is_assembled_from_the_store_without_a_gpu(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    for sm in ("86", "89"):
        compile_plan(
            request_, replace(gpu, sm=sm, target_sm=sm), store, ModelRepository(store.local.root / sm)
        )

    added = assemble(request_.onnx, request_.options, ["8.6", "8.9"], store, repository)

    assert [plan.path.name for plan in added] == ["small-fp16-sm86.plan", "small-fp16-sm89.plan"]
    with pytest.raises(CompileError, match=r"by TensorRT .* at best, without sm90; run"):
        assemble(request_.onnx, request_.options, ["8.6", "9.0"], store, repository)
    with pytest.raises(CompileError, match="The store has no fp16 plans of small version 1, batch 64"):
        assemble(request_.onnx, BuildOptions(max_batch_size=64), ["8.6"], store, repository)
    with pytest.raises(CompileError, match=r"The store has no .* by TensorRT 8\.5"):
        assemble(request_.onnx, request_.options, ["8.6"], store, repository, tensorrt_version="8.5.3.1")


def test_a_fleet_of_plans_for_one_gpu_model_each_is_assembled_with_a_warning(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = BuildOptions(hardware_compatible=False)
    compile_plan(replace(request_, options=options), gpu, store, ModelRepository(store.local.root / "86"))

    with pytest.raises(CompileError, match="hardware_compatible False, not True"):
        assemble(request_.onnx, request_.options, ["8.6"], store, repository)
    assemble(request_.onnx, options, ["8.6"], store, repository)

    assert "small-fp16-sm86.plan is for absent alone, not for all of sm86" in caplog.text


def test_a_fleet_is_assembled_by_the_gates_tolerance(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lenient = replace(request_, max_drift_cosine=0.05)
    compile_plan(lenient, coarse(gpu), store, ModelRepository(store.local.root / "86"))
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(store.local.root))
    model = ["--name", "small", "--repository", str(repository.root)]
    command = ["compile", *model, "--cc", "8.6", "--from-store"]

    monkeypatch.setenv("ARCFACE_VALIDATION_MAX_DRIFT_COSINE", "1e-5")
    assert main(command) == 1
    assert "not taken: small-fp16-sm86.plan: The plan drifts by" in capsys.readouterr().err

    monkeypatch.setenv("ARCFACE_VALIDATION_MAX_DRIFT_COSINE", "0.05")
    assert main(command) == 0


def test_a_model_or_version_that_is_not_there_is_named(repository: ModelRepository) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"There is no other_onnx in .* or run `arcface-builder build"
    ):
        find_onnx(repository, "other")
    with pytest.raises(ModelNotFoundError, match="There is no version 7 of small_onnx in"):
        find_onnx(repository, "small", 7)


def test_another_model_in_the_place_of_the_one_that_was_built_is_not_compiled(
    repository: ModelRepository,
) -> None:
    path = repository.root / "small_onnx/1/model.onnx"
    path.write_bytes(another_model(path.read_bytes()))

    with pytest.raises(ManifestError, match=r"has SHA-256 .*; its manifest says"):
        find_onnx(repository, "small")
