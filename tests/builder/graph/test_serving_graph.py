"""The serving graph against its source, for every way in which a source can be written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from onnx import helper, numpy_helper

from arcface_builder.check.accuracy import TOLERANCE, check_onnx_model
from arcface_builder.check.crops import face_like, noise
from arcface_builder.errors import NotArcFaceError, ParityError
from arcface_builder.graph.edit import embedder
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.model import SourceModel
from arcface_client.runtimes.base import Embed
from photograph import face_crops
from support.exports import EXPORTS, mxnet, pytorch_pack, small_arcface

RUN_AS_FIXED_COPY = {
    "mxnet_broken",
    "spatial_at_any_opset",
    "half_weights",
    "half_constants",
    "half_input",
    "half_output",
}
"""Exports that ONNX Runtime cannot run, or whose arithmetic differs."""

OWN_NORMALISATION = {
    "torch_normalize": Counter(["ReduceL2", "Clip", "Shape", "Expand", "Div"]),
    "divided_by_norm": Counter(["ReduceL2", "Div"]),
}
"""What stays of exports that normalise their output themselves, before the normalisation of the contract."""


Exported = tuple[str, Path, SourceModel]


def served(source: SourceModel) -> Embed:
    return embedder(source.serving_graph().SerializeToString())


def written(model: onnx.ModelProto, path: Path) -> SourceModel:
    onnx.save_model(model, path)
    return OnnxFile(path).load()


@pytest.fixture(scope="module", params=EXPORTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The small network in each form, its file, and what it is read as."""
    path = tmp_path_factory.mktemp("exported") / "source.onnx"
    return request.param, path, written(EXPORTS[request.param](small_arcface()), path)


def test_embeddings_equal_the_source_models_however_it_was_exported(exported: Exported) -> None:
    export, path, source = exported
    before = path.read_bytes()

    parity = check_onnx_model(source.embed, served(source))

    assert parity.max_abs_difference <= TOLERANCE
    assert source.runs == ("fixed copy" if export in RUN_AS_FIXED_COPY else "source file")
    assert path.read_bytes() == before


@pytest.mark.parametrize("export", [pytorch_pack, mxnet], ids=["PyTorch pack", "MXNet"])
def test_embeddings_of_real_faces_equal_insightfaces_own(export: object, tmp_path: Path) -> None:
    assert callable(export)
    source = written(export(small_arcface()), tmp_path / "source.onnx")
    crops = np.concatenate([face_crops(), noise(3), face_like(3)])

    insightface = ArcFaceONNX(str(tmp_path / "source.onnx"))
    raw = np.concatenate([insightface.get_feat(crop) for crop in crops])
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)

    np.testing.assert_allclose(served(source)(crops), expected, rtol=0, atol=TOLERANCE)


def test_the_graph_has_only_the_nodes_it_needs(exported: Exported) -> None:
    export, _, source = exported
    graph = source.serving_graph().graph

    ops = Counter(node.op_type for node in graph.node)
    ops["Cast"] -= export == "half_output"  # to float32 now, which costs nothing
    # One of ten batch norms stays: the one between PRelu and a convolution with padding.
    assert ops - OWN_NORMALISATION.get(export, Counter()) == {
        **dict.fromkeys(["Cast", "Sub", "Transpose", "BatchNormalization", "Flatten", "Gemm"], 1),
        **dict.fromkeys(["ReduceL2", "Div"], 1),
        "Conv": 6,
        "PRelu": 3,
        "Add": 2,
    }
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    # TensorRT takes bytes only where a Cast follows at once.
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]


@pytest.mark.parametrize(
    ("export", "opset", "ir_version"), [("constant_reshape", 17, 8), ("newest_opset", 21, 10)]
)
def test_the_batch_is_free_and_the_opset_is_at_least_17(
    export: str, opset: int, ir_version: int, tmp_path: Path
) -> None:
    model = written(EXPORTS[export](small_arcface()), tmp_path / "source.onnx").serving_graph()

    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == ir_version


def test_a_graph_with_127_5_instead_of_128_is_refused(tmp_path: Path) -> None:
    source = written(small_arcface(), tmp_path / "source.onnx")
    other = written(mxnet(small_arcface()), tmp_path / "other.onnx")

    with pytest.raises(ParityError):
        check_onnx_model(source.embed, served(other))


def reshaped(shape: list[int]) -> onnx.ModelProto:
    """A network that puts its features into a matrix by a Reshape."""
    model = small_arcface()
    (flatten,) = (node for node in model.graph.node if node.op_type == "Flatten")
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "matrix"))
    flatten.CopyFrom(helper.make_node("Reshape", ["dropped", "matrix"], ["flat"], "reshape"))
    return model


@pytest.mark.parametrize("shape", [[1, -1], [0, -1], [-1, 392], [1, 392]])
def test_a_reshape_to_one_row_an_image_lets_any_batch_through(shape: list[int], tmp_path: Path) -> None:
    source = written(reshaped(shape), tmp_path / "source.onnx")

    assert check_onnx_model(source.embed, served(source))


@pytest.mark.parametrize("shape", [[392, -1], [8, -1]])
def test_a_file_that_onnx_runtime_does_not_run_is_refused_with_the_node_and_the_reason(
    shape: list[int], tmp_path: Path
) -> None:
    source = written(reshaped(shape), tmp_path / "source.onnx")

    with pytest.raises(NotArcFaceError, match=r"cannot run the source file on one crop .*Name:'fc'"):
        source.serving_graph()


def test_it_is_a_warning_that_the_fixed_copy_is_the_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert written(EXPORTS["mxnet_broken"](small_arcface()), tmp_path / "source.onnx").runs == "fixed copy"

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert (
        "The reference is a fixed copy of the source, not the file itself (10 batch norms say"
        in record.message
    )
