from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from arcface_builder.check import crops as faces
from arcface_builder.check.accuracy import another_model
from arcface_builder.compile import PlanRequest, compile_plan, compile_with_fallback, convert, plan_key
from arcface_builder.errors import (
    CacheError,
    CompileError,
    OptionError,
    ParityError,
    PlanDamagedError,
    PrecisionError,
    RepositoryError,
    ServedModelError,
)
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.source.load import OnnxFile
from arcface_builder.store.local import LocalStore
from arcface_builder.store.plan_store import PlanStore, open_store
from arcface_builder.trt.gpu import Gpu
from arcface_builder.trt.options import BuildOptions
from arcface_client.models.repository import LocalModels
from support.absent_gpu import AbsentGpu, unable
from support.exports import small_arcface
from support.processes import wait_until
from support.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("few_crops")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def asking(request: PlanRequest, **options: object) -> PlanRequest:
    return replace(request, options=replace(request.options, **options))  # type: ignore[arg-type]


def test_a_plan_is_built_checked_stored_and_put_into_the_repository(
    request_: PlanRequest, gpu: Gpu, store: PlanStore, repository: ModelRepository
) -> None:
    stages: list[str] = []

    compiled = compile_plan(request_, gpu, store, repository, report=lambda stage, done: stages.append(stage))

    assert compiled.path == repository.root / "small_trt/1/small-fp16-sm86.plan"
    assert not compiled.from_store
    manifest = compiled.manifest
    assert manifest.precisions_used == {"fp16": 2}
    assert manifest.parity.largest_drift_cosine < 1e-5
    assert (manifest.parity.crops, manifest.parity.compared_with) == (32, "source file")
    assert manifest.parity.details["controls"]["another model"] > 0.001
    assert manifest.identity.tensorrt_version == gpu.trt.__version__
    assert manifest.build_seconds is not None
    assert {"Writing fp16 into the graph", "Comparing the plan with its source"} <= {*stages}
    timings = f"timing/tensorrt_rtx-{gpu.trt.__version__}-absent.cache"
    assert (store.local.root / timings).is_file()


def test_a_plan_that_is_stored_or_published_is_not_built_again(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
    tmp_path: Path,
) -> None:
    first = compile_plan(request_, gpu, store, repository)

    stored = compile_plan(request_, unable(gpu), store, elsewhere)
    published = compile_plan(request_, unable(gpu), PlanStore(LocalStore(tmp_path / "empty")), repository)

    assert (stored.from_store, stored.is_new) == (True, True)
    assert (published.from_store, published.is_new) == (True, False)
    assert first.manifest == stored.manifest == published.manifest


def test_a_plan_that_another_machine_built_comes_from_the_bucket(
    request_: PlanRequest,
    gpu: AbsentGpu,
    repository: ModelRepository,
    elsewhere: ModelRepository,
    tmp_path: Path,
    s3: S3Server,
) -> None:
    one, other = (
        open_store("plans", endpoint_url=s3.url, cache_dir=tmp_path / name) for name in ("one", "other")
    )
    first = compile_plan(request_, gpu, one, repository)

    second = compile_plan(request_, unable(gpu), other, elsewhere)

    assert second.from_store
    assert second.path.read_bytes() == first.path.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"options": BuildOptions(precision="fp32")},
        {"options": BuildOptions(max_batch_size=16)},
        {"options": BuildOptions(opt_batch_size=16)},
        {"options": BuildOptions(workspace_size_mb=512)},
        {"options": BuildOptions(small_batch_profile=False)},
        {"max_drift_cosine": 0.0005},
    ],
    ids=str,
)
def test_another_precision_profile_workspace_or_tolerance_is_another_plan(
    changes: dict[str, Any], request_: PlanRequest
) -> None:
    keys = set()
    for request in (request_, replace(request_, **changes)):
        precision = request.options.precision
        graph = convert(request, precision, "10.9.0.34")
        keys.add(plan_key(request, precision, graph, tensorrt_version="10.9.0.34", sm="86").key)
    assert len(keys) == 2


def test_a_model_that_tensorrt_8_cannot_read_is_one_sentence_and_newer_ones_take_it_as_it_is(
    request_: PlanRequest,
) -> None:
    model = onnx.load_model_from_string(request_.onnx.content())
    (source,) = (node.output[0] for node in model.graph.node if node.op_type == "Transpose")
    pool = helper.make_node("AveragePool", [source], ["unused"], kernel_shape=[2, 2], dilations=[2, 2])
    model.graph.node.append(pool)
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [None] * 4))
    model.opset_import[0].version, model.ir_version = 19, 9
    for node in model.graph.node:
        if node.op_type == "ReduceL2":
            node.ClearField("attribute")
    request_.onnx.path.write_bytes(model.SerializeToString())

    refusal = r"TensorRT 8\.5\.3\.1 reads ONNX up to opset 17, .*dilations.* The ONNX model serves as it is\."
    with pytest.raises(CompileError, match=refusal):
        convert(request_, "fp16", "8.5.3.1")
    newest = convert(request_, "fp32", "11.1.0.106").content
    assert onnx.load_model_from_string(newest).opset_import[0].version == 19


def test_a_version_takes_one_plan_for_an_architecture(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    compile_plan(request_, gpu, store, repository)

    with pytest.raises(RepositoryError, match=r"has a plan for sm86 already, small-fp16-sm86\.plan"):
        compile_plan(replace(request_, max_drift_cosine=0.0005), unable(gpu), store, repository)


def test_a_plan_for_one_gpu_model_is_not_used_for_another(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
) -> None:
    for_one = asking(request_, hardware_compatible=False)
    compile_plan(for_one, replace(gpu, name="NVIDIA A10"), store, repository)

    assert not compile_plan(for_one, replace(gpu, name="NVIDIA A40"), store, elsewhere).from_store
    assert compile_plan(for_one, unable(replace(gpu, name="NVIDIA A40")), store, elsewhere).from_store


def test_other_calibration_crops_make_another_int8_plan(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
) -> None:
    int8 = replace(asking(request_, precision="int8"), max_drift_cosine=0.05)
    ready = replace(gpu, runs_in="int8")
    first = compile_plan(int8, ready, store, repository)

    second = compile_plan(replace(int8, calibration=faces.noise(32, seed=9)), ready, store, elsewhere)

    assert not second.from_store
    assert first.manifest.identity.key != second.manifest.identity.key
    classes = {plan.manifest.precision_class for plan in (first, second)}
    assert [name[:5] for name in classes] == ["int8-", "int8-"]  # each calibration has its own
    golden = LocalModels(repository.root).golden("small_trt", 1)
    assert golden is not None
    assert golden.space.precision_class == first.manifest.precision_class
    with pytest.raises(OptionError, match="int8 needs real face crops"):
        compile_plan(replace(int8, calibration=None), unable(gpu), store, repository)


def test_a_mixed_plan_names_its_convolutions_and_shares_the_space(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    mixed = replace(asking(request_, precision="mixed"), max_drift_cosine=0.002)

    compile_plan(mixed, replace(gpu, runs_in="int8"), store, repository)

    found = LocalModels(repository.root).plan("small", "86")
    assert {"conv2", "conv3"} & set(found.manifest.quantised)
    assert found.space.precision_class == "float"
    assert found.manifest.golden is None


def test_a_plan_that_drifts_is_not_stored_and_the_error_says_what_was_kept(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    with pytest.raises(
        ParityError, match=r"The plan drifts .* Nothing was stored\. The converted graph"
    ) as refused:
        compile_plan(request_, replace(gpu, wrong_below=1 << 30), store, repository)

    kept = store.local.root / "refused/small-fp16-sm86"
    assert str(kept) in str(refused.value)
    assert files(kept) == ["crops.npy", "graph.onnx", "settings.json"]
    assert [name for name in files(repository.root) + files(store.local.root) if ".plan" in name] == []


def test_a_served_model_that_is_not_its_source_is_refused_before_anything_is_built(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    request_.onnx.path.write_bytes(another_model(request_.onnx.content()))

    with pytest.raises(ServedModelError, match=r"The served ONNX model drifts .* build the ONNX model again"):
        compile_with_fallback(request_, unable(gpu), store, repository)


def test_without_the_source_model_the_plan_is_compared_with_the_onnx_model(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    source: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    onnx.save_model(small_arcface(seed=1), source)  # another file has its name now

    compiled = compile_plan(request_, gpu, store, repository)

    assert compiled.manifest.parity.compared_with == "served ONNX model"
    missing = replace(asking(request_, precision="fp32"), source=OnnxFile(Path("gone.onnx")))
    with caplog.at_level(logging.WARNING):
        compile_plan(
            missing, replace(gpu, runs_in="fp32"), store, ModelRepository(repository.root.parent / "other")
        )
    assert "The source model is not available" in caplog.text


@pytest.mark.parametrize(("precision", "instead"), [("tf32", "fp32"), ("bf16", "fp16")])
def test_a_precision_that_the_gpu_lacks_is_refused_before_anything_is_built(
    precision: str,
    instead: str,
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
) -> None:
    turing = unable(replace(gpu, sm="75", target_sm="75"))

    with pytest.raises(PrecisionError, match=rf"{precision} .* sm80 or newer, .* sm75; use {instead}"):
        compile_plan(asking(request_, precision=precision), turing, store, repository)


def test_the_next_more_exact_precision_is_built_where_one_is_refused(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    exact = replace(gpu, runs_in="fp32")
    with pytest.raises(PrecisionError, match="The plan named fp16 runs its convolutions in other precisions"):
        compile_plan(request_, exact, store, repository)

    compiled = compile_with_fallback(request_, exact, store, repository)

    assert compiled.path.name == "small-tf32-sm86.plan"
    (refusal,) = compiled.manifest.refusals
    assert refusal.startswith("fp16 was refused: The plan named fp16 runs")
    record = json.loads((repository.root / "small_trt-1-sm86.manifest.json").read_text())
    assert record["refusals"] == [refusal]
    (stored, _), *_ = store.entries()
    assert stored.manifest is not None
    assert stored.manifest.refusals == ()  # a request for tf32 gets the same plan


def test_a_published_fallback_is_found_again_without_a_build(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    exact = replace(gpu, runs_in="fp32")
    first = compile_with_fallback(request_, exact, store, repository)

    for request in (request_, asking(request_, precision="tf32")):
        again = compile_with_fallback(request, unable(exact), store, repository)
        assert not again.is_new
        assert again.manifest == first.manifest


def test_a_published_plan_that_was_changed_is_called_damaged(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    path = compile_plan(request_, gpu, store, repository).path
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(PlanDamagedError, match=r"its manifest says .* Remove it, and compile again"):
        compile_plan(request_, gpu, store, repository)
    path.unlink()
    assert compile_plan(request_, gpu, store, repository).is_new


def test_a_cache_that_cannot_be_written_is_an_error_before_the_build(
    request_: PlanRequest, gpu: AbsentGpu, repository: ModelRepository, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CacheError, match="Cannot use the cache"):
        compile_plan(request_, unable(gpu), PlanStore(LocalStore(tmp_path / "file")), repository)


def test_concurrent_compiles_of_one_plan_build_it_once(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    begun, may_go_on = threading.Event(), threading.Event()

    def slowly(stage: str, done: float | None) -> None:
        if stage == "Inspecting the plan":
            begun.set()
            assert may_go_on.wait(60)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(compile_plan, request_, gpu, store, repository, report=slowly)
        assert begun.wait(60)
        second = pool.submit(compile_plan, request_, unable(gpu), store, elsewhere)
        try:
            wait_until(lambda: any("Another process is building" in said for said in caplog.messages))
        finally:
            may_go_on.set()

        assert not first.result().from_store
        assert second.result().from_store
