"""A plan's own layers: ONNX Runtime stands in for TensorRT where a plan has to run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from absent_gpu import AbsentGpu, layers_of
from arcface_builder import faces
from arcface_builder.errors import CompileError
from arcface_builder.plans.builder import BuildOptions, build_plan
from arcface_builder.plans.layer_errors import USUAL
from arcface_builder.plans.precision import typed_graph
from arcface_builder.plans.watching import Layers, diverging_layer, watch_plan, watched_graph
from arcface_client.contract import OUTPUT_NAME, Crops

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
    usual = USUAL[precision]
    exact = watched_graph(typed_graph(small_graph, "fp32"))
    return diverging_layer(exact, layers_of(watched_graph(plans)), CROPS, usual, 0.001)


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


def test_the_profile_for_few_crops_is_looked_at_too(small_graph: bytes) -> None:
    exact = watched_graph(small_graph)
    right, wrong = (
        layers_of(watched_graph(graph))
        for graph in (small_graph, with_weights_times(small_graph, "conv5", -1))
    )

    def of_two_profiles(crops: Crops) -> dict[str, object]:
        return dict((wrong if len(crops) <= 4 else right)(crops))

    clause = diverging_layer(exact, of_two_profiles, CROPS[:8], 1e-4, 0.001)  # type: ignore[arg-type]

    assert "the first layer that diverges is sum4" in clause


def test_a_plan_that_cannot_be_built_or_run_again_says_so_and_hides_nothing(
    gpu: AbsentGpu, small_graph: bytes
) -> None:
    class Full(AbsentGpu):
        @contextmanager
        def outputs(self, plan: bytes) -> Iterator[Layers]:
            raise CompileError("TensorRT cannot load the plan that it built: out of memory.")
            yield

    options = BuildOptions(precision="fp16")
    typed = typed_graph(small_graph, "fp16")
    built = build_plan(gpu.trt, typed, options, target_sm="86")
    full = Full(**{name: getattr(gpu, name) for name in gpu.__dataclass_fields__})

    for machine, batch, reason in (
        (full, 32, "TensorRT cannot load the plan that it built: out of memory"),
        (replace(gpu, target_sm=None), 32, "cannot make a plan for a whole compute capability"),
    ):
        clause = watch_plan(
            machine, small_graph, typed, built, replace(options, max_batch_size=batch), CROPS, 0.001
        )
        assert clause.startswith("no layer can be named: it cannot be built with its layers in sight (")
        assert reason in clause
