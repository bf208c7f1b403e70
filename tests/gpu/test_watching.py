"""The layers of plans that a real TensorRT runs on a real GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arcface_builder.check.layer_errors import USUAL_IN_TENSORRT
from arcface_builder.check.reference_embeddings import gate_crops
from arcface_builder.compile import Compiled, compile_plan
from arcface_builder.errors import ParityError
from arcface_builder.graph.precision import typed_graph
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.store import LocalStore, PlanStore
from arcface_builder.trt import engine as builder
from arcface_builder.trt.engine import BuiltPlan, build_plan
from arcface_builder.trt.gpu import Gpu
from arcface_builder.trt.options import BuildOptions
from arcface_builder.trt.watching import diverging_layer, watched_graph
from support.gpu_models import Model


def test_no_layer_of_a_good_plan_is_called_diverging(
    r18: Model, r18_options: BuildOptions, r18_plan: Compiled, gpu: Gpu
) -> None:
    assert r18_options.timing_cache is not None
    watched, exact = (watched_graph(typed_graph(r18.onnx.content, kind)) for kind in ("fp16", "fp32"))
    options = dataclasses.replace(r18_options, timing_cache=None)

    built = build_plan(gpu.trt, watched, options, timings=r18_options.timing_cache.read_bytes())
    with gpu.outputs(built.plan) as layers:
        clause = diverging_layer(
            exact,
            layers,
            gate_crops(),
            batch_sizes=(1, 4, 32),
            usual=USUAL_IN_TENSORRT["fp16"],
            max_drift_cosine=0,
        )

    assert clause.startswith(
        "of the 9 layers watched in TensorRT, no layer's relative error passes the usual"
    )


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_the_layer_is_named_from_which_on_tensorrt_computes_wrongly(
    precision: str,
    small: Model,
    small_options: BuildOptions,
    gpu: Gpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def miscompiled(trt: object, graph: bytes, *arguments: object, **more: object) -> BuiltPlan:
        model = onnx.load_model_from_string(graph)
        (weight,) = (
            tensor for tensor in model.graph.initializer if tensor.name == weights_of(model, "conv5")
        )
        weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
        return build(trt, model.SerializeToString(), *arguments, **more)

    build: Callable[..., BuiltPlan] = builder.build_plan
    for module in ("making", "plans.watching"):
        monkeypatch.setattr(f"arcface_builder.{module}.build_plan", miscompiled)
    request = small.request(dataclasses.replace(small_options, precision=precision))

    with pytest.raises(ParityError) as refused:
        compile_plan(request, gpu, PlanStore(LocalStore(tmp_path)), ModelRepository(tmp_path / "models"))

    assert "of the 3 layers watched in TensorRT, the first layer that diverges is sum4: relative" in str(
        refused.value
    )
    assert [*tmp_path.rglob("*.plan")] == []


def weights_of(model: onnx.ModelProto, layer: str) -> str:
    (node,) = (node for node in model.graph.node if node.name == layer)
    return str(node.input[1])


def test_outputs_give_back_all_memory(small_plan: Compiled, gpu: Gpu) -> None:
    from arcface_client.runtimes import cuda

    plan, crops = small_plan.added.path.read_bytes(), gate_crops()[:8]

    def cycle() -> int:
        with gpu.outputs(plan) as outputs:
            assert outputs(crops)["embedding"].shape == (8, 512)
            lengths = np.linalg.norm(outputs(crops[:4])["embedding"], axis=1)
            np.testing.assert_allclose(lengths, 1, atol=1e-6)
        return cuda.free_bytes()

    before = [cycle() for _ in range(3)][-1]
    after = [cycle() for _ in range(10)][-1]
    assert before - after <= 8 << 20
