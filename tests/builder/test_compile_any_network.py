"""Plans of other networks than IResNets: their precisions, widths, opsets and batches of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

from arcface_builder.build import build
from arcface_builder.check.crops import face_like
from arcface_builder.cli.app import main
from arcface_builder.compile import PlanRequest, compile_plan
from arcface_builder.errors import CompileError, ParityError, PrecisionError
from arcface_builder.graph.edit import embedder
from arcface_builder.graph.opset import lowered
from arcface_builder.graph.precision import typed_graph, typed_int8
from arcface_builder.graph.quantise import quantise
from arcface_builder.repository.config import read_config
from arcface_builder.repository.publish import ModelRepository, find_onnx
from arcface_builder.source.load import OnnxFile, located
from arcface_builder.store.plan_store import PlanStore
from arcface_builder.trt.engine import build_plan
from arcface_builder.trt.options import BuildOptions
from arcface_client.contract import Embeddings
from arcface_client.models.golden import largest_drift
from arcface_client.runtimes.base import in_batches
from support.absent_gpu import AbsentGpu
from support.networks import HEAD, NETWORKS, ONE_CROP, STEM, network

CROPS = face_like(8, seed=3)


def publish(model: onnx.ModelProto, folder: Path, **stated: Any) -> ModelRepository:
    (folder / "source.onnx").write_bytes(model.SerializeToString())
    build(OnnxFile(folder / "source.onnx", **stated), name="net", repository=folder / "models")
    return ModelRepository(folder / "models")


def request_for(repository: ModelRepository, **options: Any) -> PlanRequest:
    onnx_model = find_onnx(repository, "net")
    source = located(onnx_model.manifest.source_location)
    return PlanRequest(onnx=onnx_model, options=BuildOptions(**options), source=source)


def absent(repository: ModelRepository, trt: ModuleType, **more: Any) -> AbsentGpu:
    graph = find_onnx(repository, "net").content()
    return AbsentGpu(trt, sm="86", name="absent", driver_version="13.0", target_sm="86", graph=graph, **more)


def config(repository: ModelRepository, model: str) -> Any:
    return read_config(repository.root / model / "config.pbtxt")


def graph_of(model: onnx.ModelProto, folder: Path) -> bytes:
    return find_onnx(publish(model, folder), "net").content()


def embed(graph: bytes, size: int = 4) -> Embeddings:
    return in_batches(embedder(graph), CROPS, size)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_drifts_little_in_fp16_and_tensorrt_builds_it(
    name: str, tmp_path: Path, trt: ModuleType
) -> None:
    graph = graph_of(NETWORKS[name], tmp_path)
    typed = typed_graph(graph, "fp16")

    assert largest_drift(embed(typed), embed(graph)) < 1e-5
    if name != "opset 18":  # TensorRT has no Resize of named axes
        assert build_plan(trt, typed, BuildOptions(max_batch_size=4), target_sm="89").plan
    if name in ("opset 21", "a map that is resized"):
        options = BuildOptions(precision="bf16", max_batch_size=4)
        assert build_plan(trt, typed_graph(graph, "bf16"), options, target_sm="89").plan


@pytest.mark.usefixtures("few_crops")
def test_a_plan_of_another_width_and_channel_order_is_checked_and_served_as_such(
    tmp_path: Path, trt: ModuleType, store: PlanStore
) -> None:
    model = network(f"{STEM} map = Relu(stem) {HEAD}")
    repository = publish(model, tmp_path, color="bgr")

    added = compile_plan(request_for(repository), absent(repository, trt), store, repository)

    assert list(config(repository, "net_trt").output[0].dims) == [64]
    assert list(config(repository, "net_onnx").output[0].dims) == [64]
    controls = added.manifest.parity.details["controls"]
    assert {"red and blue swapped", "another model"} <= controls.keys()
    assert all(drift > 0.001 for drift in controls.values())


@pytest.mark.usefixtures("few_crops")
def test_a_network_that_takes_one_crop_at_a_time_gets_plans_of_batches_of_one(
    tmp_path: Path,
    trt: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repository = publish(ONE_CROP, tmp_path)
    monkeypatch.setattr("arcface_builder.cli.compile.gpu_at_hand", lambda: absent(repository, trt))
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))

    assert main(["compile", "--name", "net", "--repository", str(repository.root)]) == 0

    assert "net_onnx embeds one crop at a time, and so do its plans" in capsys.readouterr().err
    plans = config(repository, "net_trt")
    assert plans.max_batch_size == 1
    assert plans.WhichOneof("scheduling_choice") is None
    assert list(plans.instance_group[0].profile) == ["0"]


@pytest.mark.usefixtures("few_crops")
def test_a_refused_plan_of_one_crop_at_a_time_names_where_it_diverges(
    tmp_path: Path, trt: ModuleType, store: PlanStore
) -> None:
    repository = publish(ONE_CROP, tmp_path)
    wrong = absent(repository, trt, wrong_below=1 << 30)

    with pytest.raises(ParityError, match=r"The plan drifts .*the cause is TensorRT's build"):
        compile_plan(request_for(repository, max_batch_size=1), wrong, store, repository)


def test_one_crop_at_a_time_is_the_same_without_the_loop(tmp_path: Path) -> None:
    graph = graph_of(ONE_CROP, tmp_path)

    in_int8 = typed_int8(quantise(graph, CROPS).content, "int8")
    for typed, allowed in (
        (typed_graph(graph, "fp32"), 1e-6),
        (typed_graph(graph, "fp16"), 1e-5),
        (in_int8, 1e-2),
    ):
        assert "Scan" not in {node.op_type for node in onnx.load_model_from_string(typed).graph.node}
        assert largest_drift(embed(typed, 1), embed(graph)) < allowed
    assert largest_drift(embed(lowered(graph, 17), 1), embed(graph)) < 1e-6


def quantised_by_pairs(model: onnx.ModelProto, path: Path) -> None:
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    batch = np.random.RandomState(0).standard_normal((4, 3, 112, 112)).astype(np.float32)
    quantize_static(
        model,
        path,
        SimpleNamespace(get_next=partial(next, iter([{"data": batch}]), None)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        extra_options=symmetric,
    )


def test_a_network_that_is_quantised_already_has_int8_plans_alone_and_needs_no_crops(
    tmp_path: Path, trt: ModuleType
) -> None:
    quantised_by_pairs(network(f"{STEM} map = Relu(stem) {HEAD}"), tmp_path / "int8.onnx")
    graph = graph_of(onnx.load_model(tmp_path / "int8.onnx"), tmp_path)

    typed = typed_graph(graph, "int8")

    np.testing.assert_allclose(embed(typed), embed(graph), rtol=0, atol=1e-6)
    assert build_plan(trt, typed, BuildOptions(precision="int8", max_batch_size=4), target_sm="89").plan
    with pytest.raises(PrecisionError, match=r"is quantised already: its plans have --precision int8\."):
        typed_graph(graph, "fp16")


def test_a_network_quantised_in_a_way_that_tensorrt_lacks_is_one_sentence(
    tmp_path: Path, trt: ModuleType
) -> None:
    model = network(f"{STEM} map = Relu(stem) {HEAD}")
    quantize_dynamic(model, tmp_path / "int8.onnx", weight_type=QuantType.QUInt8)
    typed = typed_graph(graph_of(onnx.load_model(tmp_path / "int8.onnx"), tmp_path), "int8")

    with pytest.raises(CompileError, match=r"cannot parse the graph at the \w+ node .*serves as it is\.$"):
        build_plan(trt, typed, BuildOptions(precision="int8", max_batch_size=1), target_sm="89")


def test_int8_of_a_network_without_convolutions_is_one_sentence(tmp_path: Path) -> None:
    graph = graph_of(NETWORKS["no convolution"], tmp_path)

    with pytest.raises(PrecisionError, match="int8 is for convolutions after the first"):
        quantise(graph, CROPS)
