"""Graphs of newer opsets, written for TensorRT 8.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from arcface_builder.graph.edit import session
from arcface_builder.graph.opset import lowered

SHAPE = ("N", 4, 6, 6)


def graph(*nodes: onnx.NodeProto, opset: int, **constants: Any) -> bytes:
    """A graph from x to y, both float32 [N, 4, 6, 6] or what follows from it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)]
    arrays = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(list(nodes), "g", inputs, outputs, arrays)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(model.SerializeToString())


def run(content: bytes) -> npt.NDArray[Any]:
    x = np.random.RandomState(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    return np.asarray(session(content).run(None, {"x": x})[0])


ONES = np.ones(4, np.float32)
CASES = {
    "mean over named axes": graph(
        helper.make_node("ReduceMean", ["x", "axes"], ["y"]), opset=18, axes=[2, 3]
    ),
    "length as torch's dynamo exporter writes it": graph(
        helper.make_node("ReduceL2", ["x", "axes"], ["y"], keepdims=1, noop_with_empty_axes=0),
        opset=18,
        axes=[1],
    ),
    "layer norm": graph(
        helper.make_node("LayerNormalization", ["x", "scale"], ["y"], epsilon=1e-6),
        opset=18,
        scale=np.arange(6, dtype=np.float32),
    ),
    "group norm": graph(
        helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2),
        opset=21,
        scale=ONES * 2,
        bias=ONES,
    ),
    "exact GELU": graph(helper.make_node("Gelu", ["x"], ["y"]), opset=20),
    "GELU by tanh": graph(helper.make_node("Gelu", ["x"], ["y"], approximate="tanh"), opset=20),
    "Mish": graph(helper.make_node("Mish", ["x"], ["y"]), opset=18),
    "channels split by count": graph(
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Sub", ["a", "b"], ["y"]),
        opset=18,
    ),
    "padding of named axes": graph(
        helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"]), opset=18, pads=[1, 0, 2, 3], axes=[-1, 2]
    ),
    "resize": graph(
        helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=0),
        opset=19,
        scales=np.array([1, 1, 2, 2], np.float32),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_of_a_newer_opset_computes_the_same_in_opset_17(case: str) -> None:
    older = lowered(CASES[case], 17)

    model = onnx.load_model_from_string(older)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [17]
    assert model.ir_version == 8
    assert not {"CastLike", "LayerNormalization"} & {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(older), run(CASES[case]), rtol=1e-5, atol=1e-6)


def test_a_graph_that_tensorrt_8_reads_stays_byte_for_byte(small_graph: bytes) -> None:
    assert lowered(small_graph, 17) == small_graph


@pytest.mark.parametrize(
    ("newer", "named"),
    [
        (
            graph(
                helper.make_node("Resize", ["x", "", "scales"], ["y"], axes=[2, 3], name="up"),
                opset=18,
                scales=np.array([2, 2], np.float32),
            ),
            "axes",
        ),
        (
            graph(
                helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]), opset=19
            ),
            "dilations",
        ),
        (
            graph(helper.make_node("ReduceMax", ["x"], ["y"], "none", noop_with_empty_axes=1), opset=18),
            "ReduceMax node 'none' reduces no axis",
        ),
    ],
    ids=["resize of named axes", "dilated pooling", "a reduction of nothing"],
)
def test_what_has_no_older_form_is_named(newer: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        lowered(newer, 17)
    assert "\n" not in str(error.value)
