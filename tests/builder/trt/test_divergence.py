from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from arcface_builder.check import crops as faces
from arcface_builder.check.divergence import explain_drift
from arcface_builder.check.gate import Verdict
from arcface_builder.check.layer_errors import worst_layer
from arcface_builder.check.reference_embeddings import Standard
from arcface_builder.errors import ParityError
from arcface_builder.graph.precision import typed_graph
from arcface_client.contract import INPUT_NAME, Crops
from arcface_client.runtimes.base import Embed
from photograph import face_crops
from support.embedders import embedder


def explained(serving_graph: bytes, typed: bytes, standard: Standard, precision: str) -> str:
    return explain_drift(
        serving_graph,
        typed,
        standard,
        precision=precision,
        max_drift_cosine=0.001,
        watch=lambda: "its layers are ...",
    )


def test_int8_with_absurd_ranges_is_refused_and_its_layer_named(
    verdict_of: Callable[[Embed], Verdict], standard: Standard, small_graph: bytes
) -> None:
    model = onnx.load_model_from_string(
        typed_graph(small_graph, "int8", calibration=face_crops(), strongly_typed=False)
    )
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "bn2a_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(40), scale.name))
    absurd = model.SerializeToString()

    with pytest.raises(ParityError, match="The plan drifts by"):
        verdict_of(embedder(absurd)).check()
    assert re.fullmatch(
        r"the graph itself drifts by 0\.\d+ in ONNX Runtime; "
        r"the first layer that diverges is conv2: relative error 0\.\d+, usual up to 0\.1",
        explained(small_graph, absurd, standard, "int8"),
    )


def test_a_graph_that_passes_the_gate_itself_is_called_sound(standard: Standard, small_graph: bytes) -> None:
    typed = typed_graph(small_graph, "fp16")

    assert explained(small_graph, typed, standard, "fp16") == (
        "its graph is sound in ONNX Runtime, so TensorRT's build is at fault: its layers are ..."
    )


def test_a_graph_that_drifts_by_many_usual_errors_is_not_called_sound(
    standard: Standard, small_graph: bytes
) -> None:
    smooth = faces.face_like(32, seed=3)
    few = replace(standard, crops=smooth, from_source=embedder(small_graph)(smooth))
    typed = typed_graph(small_graph, "int8", calibration=smooth)

    # With the oldest ONNX Runtime, one layer's error is just above the usual.
    assert re.fullmatch(
        r"the graph itself drifts by 0\.00\d+ in ONNX Runtime; "
        r"(no layer's relative error passes the usual 0\.1; the largest is that of conv\d, 0\.0\d+"
        r"|the first layer that diverges is conv\d: relative error 0\.1\d, usual up to 0\.1)",
        explained(small_graph, typed, few, "int8"),
    )


def test_where_no_layers_error_is_unusual_the_largest_is_named() -> None:
    assert worst_layer({"conv1": 0.01, "conv2": 0.05, "fc": 0.02}, 0.1) == (
        "no layer's relative error passes the usual 0.1; the largest is that of conv2, 0.05"
    )


def test_the_layer_where_not_a_number_comes_from_is_named(standard: Standard, small_graph: bytes) -> None:
    model = onnx.load_model_from_string(typed_graph(small_graph, "fp16"))
    node = next(node for node in model.graph.node if node.name == "conv4")
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(np.inf), weight.name))

    assert explained(small_graph, model.SerializeToString(), standard, "fp16") == (
        "the graph itself drifts by nan in ONNX Runtime; "
        "the first layer that diverges is conv4: relative error nan, usual up to 0.01"
    )


@pytest.mark.parametrize(
    ("precision", "clause"),
    [
        (
            "bf16",
            r"ONNX Runtime cannot run its graph \(\[ONNXRuntimeError\] : 9 : .*\); its layers are \.\.\.",
        ),
        ("tf32", r"which TensorRT alone rounds to, its layers are \.\.\."),
    ],
)
def test_of_a_precision_that_onnx_runtime_does_not_compute_in_the_plans_own_layers_are_told(
    precision: str, clause: str, standard: Standard, small_graph: bytes
) -> None:
    typed = typed_graph(small_graph, precision)

    assert re.fullmatch(clause, explained(small_graph, typed, standard, precision))


def test_all_layers_of_a_graph_are_looked_at_on_two_crops(
    standard: Standard, small_graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    run = onnxruntime.InferenceSession.run

    def counting(
        self: onnxruntime.InferenceSession, names: Sequence[str] | None, feed: dict[str, Crops]
    ) -> object:
        arrays = run(self, names, feed)
        seen.append((len(arrays), len(feed[INPUT_NAME])))
        return arrays

    typed = typed_graph(small_graph, "int8", calibration=face_crops())
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counting)
    explained(small_graph, typed, standard, "int8")

    assert seen[:-2] == [(1, 8)] * 32
    assert [crops for _, crops in seen[-2:]] == [2, 2]
    assert seen[-1][0] > 5
