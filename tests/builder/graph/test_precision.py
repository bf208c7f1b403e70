from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from arcface_builder.check import crops as faces
from arcface_builder.graph.precision import fallbacks, typed_graph
from arcface_builder.source.load import OnnxFile
from arcface_client.contract import Crops
from arcface_client.models.golden import largest_drift
from photograph import face_crops
from support.embedders import embed
from support.exports import EXPORTS, small_arcface


def crops() -> Crops:
    return np.concatenate([face_crops(), faces.face_like(6, seed=7), faces.noise(4, seed=7)])


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(graph).graph.node)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_float32_graphs_compute_as_the_serving_graph_does(precision: str, small_graph: bytes) -> None:
    typed = typed_graph(small_graph, precision)

    np.testing.assert_allclose(embed(typed, crops()), embed(small_graph, crops()), rtol=0, atol=1e-6)


def test_fp16_computes_in_halves_and_drifts_little(small_graph: bytes) -> None:
    typed = typed_graph(small_graph, "fp16")
    embeddings = embed(typed, face_crops())

    assert largest_drift(embeddings, embed(small_graph, face_crops())) < 2e-5
    assert len(typed) < 0.6 * len(small_graph)
    # One cast for the pixels, one in front of the normalisation to unit length, and no detours.
    assert operators(typed)["Cast"] == 2
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("export", ["torch_normalize", "divided_by_norm", "unit_length"])
def test_embeddings_have_unit_length_however_the_source_normalises(
    export: str, precision: str, tmp_path: Path
) -> None:
    onnx.save_model(EXPORTS[export](small_arcface()), tmp_path / "source.onnx")
    source = OnnxFile(tmp_path / "source.onnx").load()
    graph = source.serving_graph().SerializeToString()

    embeddings = embed(typed_graph(graph, precision), crops())

    np.testing.assert_allclose(np.linalg.norm(embeddings.astype(np.float64), axis=1), 1, rtol=0, atol=1e-6)
    assert largest_drift(embeddings, embed(graph, crops())) < 2e-5


def test_fp16_holds_batch_norms_whose_variance_it_does_not(small_graph: bytes) -> None:
    model = onnx.load_model_from_string(small_graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    for index, factor in ((1, 1e4), (3, 1e4), (4, 1e8)):  # the same function of a wider input
        tensor = tensors[norm.input[index]]
        array = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    graph = model.SerializeToString()

    typed = typed_graph(graph, "fp16")

    assert largest_drift(embed(typed, crops()), embed(graph, crops())) < 1e-4


def test_bf16_rounds_the_weights_once_and_keeps_the_contract(small_graph: bytes) -> None:
    typed = onnx.load_model_from_string(typed_graph(small_graph, "bf16"))

    kinds = {tensor.data_type for tensor in typed.graph.initializer}
    assert TensorProto.BFLOAT16 in kinds
    assert TensorProto.FLOAT16 not in kinds
    assert typed.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert typed.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in typed.graph.initializer}
    exact = onnx.load_model_from_string(small_graph).graph.initializer
    weight = next(tensor for tensor in exact if len(tensor.dims) == 4)
    rounded = tensors[weight.name].astype(np.float32)
    np.testing.assert_allclose(rounded, numpy_helper.to_array(weight), rtol=2**-8)


def test_nodes_without_names_are_converted(small_graph: bytes) -> None:
    model = onnx.load_model_from_string(small_graph)
    for node in model.graph.node:
        node.name = ""

    typed = typed_graph(model.SerializeToString(), "fp16")

    assert largest_drift(embed(typed, face_crops()), embed(small_graph, face_crops())) < 2e-5


@pytest.mark.parametrize(
    ("precision", "sm", "expected"),
    [
        ("int8", "80", ["fp16", "tf32", "fp32"]),
        ("bf16", "120", ["tf32", "fp32"]),
        ("int8", "75", ["fp16", "fp32"]),
        ("fp16", "75", ["fp32"]),
        ("fp32", "75", []),
    ],
)
def test_the_more_exact_precisions_that_a_gpu_has_follow(
    precision: str, sm: str, expected: list[str]
) -> None:
    assert fallbacks(precision, sm) == expected
