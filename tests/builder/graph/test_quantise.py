from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from arcface_builder.check import crops as faces
from arcface_builder.errors import PrecisionError
from arcface_builder.graph.edit import session
from arcface_builder.graph.equalise import equalise, fuse_prelus
from arcface_builder.graph.precision import typed_int8
from arcface_builder.graph.quantise import calibrate, quantise
from arcface_client.contract import INPUT_NAME, Crops, Embeddings
from arcface_client.models.golden import largest_drift
from photograph import face_crops
from support.embedders import embed
from support.networks import HEAD, STEM, WEIGHTS, network


def calibration() -> Crops:
    return np.concatenate([face_crops(), faces.face_like(10, seed=5)])


@pytest.fixture(scope="module")
def int8_graph(small_graph: bytes) -> bytes:
    return quantise(small_graph, calibration()).content


def test_only_convolutions_read_eight_bits(int8_graph: bytes, small_graph: bytes) -> None:
    nodes = onnx.load_model_from_string(int8_graph).graph.node
    readers: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node.op_type)
    held = [node.output[0] for node in nodes if node.op_type == "DequantizeLinear"]
    assert len(held) == 10  # input and weights of five convolutions; the first stays as it is
    assert {tuple(set(readers[name])) for name in held} == {("Conv",)}
    assert 1e-7 < largest_drift(embed(int8_graph, face_crops()), embed(small_graph, face_crops())) < 0.02


def test_weights_are_integers_with_a_scale_for_each_output_channel(int8_graph: bytes) -> None:
    graph = onnx.load_model_from_string(int8_graph).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    assert len(weights) == 5
    for node in weights:
        levels, scales = (numpy_helper.to_array(tensors[name]) for name in node.input[:2])
        assert levels.dtype == np.int8
        assert scales.shape == levels.shape[:1]
        assert (np.abs(levels.astype(int)).max(axis=(1, 2, 3)) == 127).all()


@pytest.mark.parametrize("strongly_typed", [False, True])
def test_tensorrt_quantises_the_weights_itself(
    strongly_typed: bool, int8_graph: bytes, small_graph: bytes
) -> None:
    typed = typed_int8(int8_graph, "int8", strongly_typed=strongly_typed)

    graph = onnx.load_model_from_string(typed).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 10
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
    assert kinds == {TensorProto.FLOAT16 if strongly_typed else TensorProto.FLOAT}
    assert largest_drift(embed(typed, face_crops()), embed(int8_graph, face_crops())) < 5e-4
    assert largest_drift(embed(typed, face_crops()), embed(small_graph, face_crops())) < 0.02


TAKEN_APART = {
    "Keras": "pos = Relu(c) minus = Neg(c) neg = Relu(minus) part = Mul(neg, less) p = Add(pos, part)",
    "TensorFlow": "pos = Relu(c) size = Abs(c) both = Sub(c, size) part = Mul(both, half) p = Add(part, pos)",
    "Max and Min": "pos = Max(c, zero) neg = Min(c, zero) part = Mul(slope, neg) p = Add(pos, part)",
}
SLOPE = np.linspace(0.05, 0.4, 8, dtype=np.float32).reshape(8, 1, 1)
WHOLE = "p = PRelu(c, slope)"
INNER: dict[str, Any] = {
    "v": (8, 8, 3, 3),
    "u": (8, 8, 1, 1),
    "slope": SLOPE,
    "half": SLOPE / 2,
    "less": -SLOPE,
    "zero": np.float32(0),
}


def inner_network(activation: str, **weights: Any) -> onnx.ModelProto:
    """A stem, a convolution, an activation, a convolution, and the head."""
    body = f"{STEM} c = Conv<pads=[1,1,1,1]>(stem, v) {activation} map = Conv(p, u) {HEAD}"
    return network(body, weights=WEIGHTS | INNER | weights)


def output(model: ir.Model) -> Embeddings:
    """What it gives for two images."""
    pixels = np.random.RandomState(0).standard_normal((2, 3, 112, 112)).astype(np.float32)
    return session(model).run(None, {"data": pixels})[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("activation", TAKEN_APART.values(), ids=TAKEN_APART)
def test_prelus_that_a_converter_took_apart_are_put_together(activation: str) -> None:
    model = ir.from_proto(inner_network(activation))

    assert fuse_prelus(model) == 1

    assert [node.op_type for node in model.graph] == ["Conv", "Conv", "PRelu", "Conv", "Flatten", "Gemm"]
    np.testing.assert_array_equal(output(model), output(ir.from_proto(inner_network(WHOLE))))


@pytest.mark.parametrize(
    "activation",
    [
        "pos = Relu(c) part = Mul(stem, half) p = Add(pos, part)",
        "pos = Relu(c) twice = Mul(pos, half) p = Add(pos, twice)",
        "more = Add(c, half) pos = Relu(more) part = Mul(more, half) p = Add(pos, part)",
    ],
    ids=["of two tensors", "another slope above zero", "of a shifted tensor"],
)
def test_other_sums_stay_as_they_are(activation: str) -> None:
    model = ir.from_proto(inner_network(activation))
    expected = output(model)

    fuse_prelus(model)

    np.testing.assert_allclose(output(model), expected, rtol=0, atol=1e-6)


def test_channels_are_evened_out_and_the_network_computes_the_same() -> None:
    sizes = np.float32(10) ** np.linspace(-2, 2, 8, dtype=np.float32)
    uneven = (
        np.random.RandomState(1).standard_normal((8, 8, 3, 3)).astype(np.float32) * sizes[:, None, None, None]
    )
    model = ir.from_proto(inner_network(WHOLE, v=uneven))
    tensors = {value.name: value for node in model.graph for value in node.outputs}
    before = output(model)

    factors = equalise(model, {tensors["stem"]: np.ones(8, np.float32), tensors["p"]: sizes})

    np.testing.assert_allclose(output(model), before, rtol=1e-6, atol=1e-6 * np.abs(before).max())
    evened = sizes * factors[tensors["p"]]
    assert np.ptp(np.log(evened)) == pytest.approx(0.5 * np.ptp(np.log(sizes)))


def test_crops_are_read_a_few_at_a_time(small_graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = onnxruntime.InferenceSession.run

    def counting(self: onnxruntime.InferenceSession, names: object, feed: dict[str, Crops]) -> object:
        seen.append(len(feed[INPUT_NAME]))
        return run(self, names, feed)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counting)
    calibrate(small_graph, faces.face_like(20, seed=5))

    assert max(seen) <= 8


def test_layers_that_are_not_quantised_are_named_with_the_reason(small_graph: bytes) -> None:
    graph = quantise(small_graph, calibration())

    assert list(graph.wide.values()) == ["the first convolution", "Gemm is not quantised"]
    assert len(graph.convolutions) == 5
    assert graph.share == 1


def test_convolutions_of_few_channels_stay_wide_where_int8_does_not_pay(small_graph: bytes) -> None:
    model = onnx.load_model_from_string(small_graph)
    channels = [tensor.dims[1] for tensor in model.graph.initializer if len(tensor.dims) == 4][1]

    graph = quantise(small_graph, calibration(), least_channels=channels)
    assert len(graph.convolutions) == 5
    with pytest.raises(PrecisionError, match=rf"convolutions of {channels + 1} channels or more after"):
        quantise(small_graph, calibration(), least_channels=channels + 1)


def test_nodes_without_names_are_quantised(small_graph: bytes) -> None:
    model = onnx.load_model_from_string(small_graph)
    for node in model.graph.node:
        node.name = ""

    graph = quantise(model.SerializeToString(), calibration())

    assert len(graph.convolutions) == 5
    assert largest_drift(embed(graph.content, face_crops()), embed(small_graph, face_crops())) < 0.02
