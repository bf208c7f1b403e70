"""A plan's own layers: ONNX Runtime stands in for TensorRT where a plan has to run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arcface_builder.check import crops as faces
from arcface_builder.check.layer_errors import USUAL_IN_TENSORRT
from arcface_builder.errors import CompileError
from arcface_builder.graph.precision import typed_graph
from arcface_builder.trt.engine import BuiltPlan, build_plan
from arcface_builder.trt.options import BuildOptions
from arcface_builder.trt.watching import Layers, diverging_layer, watch_plan, watched_graph
from arcface_client.contract import OUTPUT_NAME, Crops
from arcface_client.runtimes.onnxruntime import RUN_ERRORS
from support.absent_gpu import AbsentGpu, layers_of

CROPS = faces.face_like(10, seed=6)  # a batch of eight, and one that is not full


def with_weights_times(graph: bytes, layer: str, factor: float) -> bytes:
    """A graph of which one layer computes wrongly."""
    model = onnx.load_model_from_string(graph)
    (node,) = (node for node in model.graph.node if node.name == layer)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array * array.dtype.type(factor), weight.name))
    return bytes(model.SerializeToString())


def found(small_graph: bytes, plans: bytes, precision: str = "fp16") -> str:
    exact = watched_graph(typed_graph(small_graph, "fp32"))
    layers = layers_of(watched_graph(plans))
    return diverging_layer(
        exact, layers, CROPS, batch_sizes=(1, 10), usual=USUAL_IN_TENSORRT[precision], max_drift_cosine=0.001
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_takes_the_graphs_with_their_layers_in_sight(
    precision: str, trt: ModuleType, small_graph: bytes
) -> None:
    typed = typed_graph(small_graph, precision, calibration=CROPS)
    watched = watched_graph(typed)

    assert build_plan(trt, watched, BuildOptions(precision=precision), target_sm="89").plan
    outputs = onnx.load_model_from_string(watched).graph.output
    assert [output.name for output in outputs] == [
        OUTPUT_NAME,
        "watched.sum2",
        "watched.sum4",
        "watched.fc",
    ]
    assert {output.type.tensor_type.elem_type for output in outputs} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(("layer", "sum_behind"), [("conv3", "sum2"), ("conv5", "sum4"), ("fc", "fc")])
def test_the_sum_behind_a_layer_that_computes_wrongly_is_named(
    layer: str, sum_behind: str, small_graph: bytes
) -> None:
    wrong = with_weights_times(typed_graph(small_graph, "fp16"), layer, -1)

    assert re.fullmatch(
        rf"of the 3 layers watched in TensorRT, the first layer that diverges is {sum_behind}: "
        r"relative error \d\S*, usual up to 0\.02",
        found(small_graph, wrong),
    )


def test_not_a_number_is_named_where_it_comes_from(small_graph: bytes) -> None:
    wrong = with_weights_times(typed_graph(small_graph, "fp16"), "conv4", np.nan)

    assert "the first layer that diverges is sum4: relative error nan" in found(small_graph, wrong)


def test_a_fault_that_is_gone_when_its_layers_are_in_sight_is_no_layers(small_graph: bytes) -> None:
    assert found(small_graph, typed_graph(small_graph, "fp16")) == (
        "no layer can be named: with its layers in sight the plan passes, so the fault lies in how TensorRT "
        "merges them"
    )


def test_where_there_are_no_sums_convolutions_are_watched(small_graph: bytes) -> None:
    model = onnx.load_model_from_string(small_graph)
    for node in model.graph.node:
        if node.op_type == "Add":
            node.op_type = "Sum"

    outputs = onnx.load_model_from_string(watched_graph(model.SerializeToString())).graph.output

    assert [output.name for output in outputs][1:3] == ["watched.conv1", "watched.conv2"]


@pytest.mark.parametrize("wrong_size", [1, 4, 10])
def test_every_batch_size_that_the_gate_ran_is_looked_at(wrong_size: int, small_graph: bytes) -> None:
    exact = watched_graph(small_graph)
    right, wrong = (
        layers_of(watched_graph(graph))
        for graph in (small_graph, with_weights_times(small_graph, "conv5", -1))
    )

    def wrong_in_one_size(crops: Crops) -> Mapping[str, Any]:
        return (wrong if len(crops) == wrong_size else right)(crops)

    clause = diverging_layer(
        exact, wrong_in_one_size, CROPS, batch_sizes=(1, 4, 10), usual=1e-4, max_drift_cosine=0.001
    )

    assert "the first layer that diverges is sum4" in clause


def test_the_plan_is_built_again_as_it_was_and_run_in_no_larger_batches(
    gpu: AbsentGpu, small_graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BuildOptions(precision="fp16", max_batch_size=4, timing_cache=Path("asked.cache"))
    typed = typed_graph(small_graph, "fp16")
    built = BuiltPlan(
        plan=b"", workspace_size_mb=256, build_s=100, timing_cache="cold", timings=b"measured before"
    )
    asked: list[tuple[BuildOptions, object]] = []

    def build_again(trt: object, graph: bytes, options: BuildOptions, **more: object) -> BuiltPlan:
        asked.append((options, more["timings"]))
        return built

    monkeypatch.setattr("arcface_builder.trt.watching.build_plan", build_again)
    clause = watch(small_graph, typed, gpu, built, options, batch_sizes=(1, 2, 4))

    assert "with its layers in sight the plan passes" in clause
    assert asked == [(replace(options, timing_cache=None, workspace_size_mb=256), b"measured before")]


def watch(
    serving_graph: bytes,
    typed: bytes,
    gpu: AbsentGpu,
    built: BuiltPlan,
    options: BuildOptions,
    batch_sizes: Sequence[int] = (1, 4),
) -> str:
    return watch_plan(
        serving_graph,
        typed,
        gpu=gpu,
        built=built,
        options=options,
        crops=CROPS,
        batch_sizes=batch_sizes,
        max_drift_cosine=0.001,
    )


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            CompileError("TensorRT cannot load the plan: no reason given."),
            "TensorRT cannot load the plan: no re",
        ),
        (RUN_ERRORS[1]("bad allocation"), "bad allocation"),
        (MemoryError(), "there is no memory for them"),
    ],
    ids=["TensorRT", "ONNX Runtime", "memory"],
)
def test_a_plan_that_cannot_be_built_or_run_again_says_so_and_hides_nothing(
    failure: Exception, reason: str, gpu: AbsentGpu, small_graph: bytes
) -> None:
    class Full(AbsentGpu):
        @contextmanager
        def outputs(self, plan: bytes) -> Iterator[Layers]:
            raise failure
            yield

    typed = typed_graph(small_graph, "fp16")
    options = BuildOptions(precision="fp16")
    built = build_plan(gpu.trt, typed, options, target_sm="86")
    full = Full(**{name: getattr(gpu, name) for name in gpu.__dataclass_fields__})

    clause = watch(small_graph, typed, full, built, options)

    assert clause.startswith(
        f"no layer can be named: the plan cannot be built or run with its layers in sight ({reason}"
    )


def test_a_plan_that_cannot_be_built_again_says_why(gpu: AbsentGpu, small_graph: bytes) -> None:
    typed = typed_graph(small_graph, "fp16")
    options = BuildOptions(precision="fp16")
    built = build_plan(gpu.trt, typed, options, target_sm="86")

    clause = watch(small_graph, typed, replace(gpu, target_sm=None), built, options)

    assert "cannot make a plan for a whole compute capability" in clause
