"""Networks of other kinds than IResNet, written as torch, TensorFlow and quantisers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from arcface_builder.build import BuiltModel, build
from arcface_builder.check.accuracy import TOLERANCE
from arcface_builder.check.crops import face_like
from arcface_builder.errors import NotArcFaceError, OptionError
from arcface_builder.source.load import OnnxFile
from arcface_client.contract import Crops, Embeddings
from arcface_client.models.normalisation import FAMILIES, Normalisation
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.networks import HEAD, NETWORKS, ONE_CROP, STEM, WEIGHTS, network


def saved(model: onnx.ModelProto, folder: Path, **stated: Any) -> OnnxFile:
    (folder / "source.onnx").write_bytes(model.SerializeToString())
    return OnnxFile(folder / "source.onnx", **stated)


def built(model: onnx.ModelProto, folder: Path, **stated: Any) -> BuiltModel:
    """Build it, and find the source's embeddings of each crop in batches of any size."""
    model_ = build(saved(model, folder, **stated), name="net", repository=folder / "models")
    parity = model_.manifest.parity
    assert parity.max_abs_difference <= TOLERANCE
    assert parity.batch_sizes == (1, 3, 8)
    return model_


def embedded(model: BuiltModel, crops: Crops) -> Embeddings:
    return OnnxRuntime(model.path / "model.onnx").embed(crops)


def config(model: BuiltModel) -> str:
    return (model.path.parent / "config.pbtxt").read_text()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_that_onnx_runtime_runs_is_served_with_its_own_embeddings(
    name: str, tmp_path: Path
) -> None:
    model = built(NETWORKS[name], tmp_path)

    assert "max_batch_size: 32" in config(model)
    assert not any("cannot be folded" in line for line in model.manifest.repairs)


def test_a_batch_fixed_to_one_that_cannot_be_freed_is_served_crop_by_crop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = built(ONE_CROP, tmp_path)

    assert "max_batch_size: 1\n" in config(model)
    assert "the network does not serve batches (ONNX Runtime: " in caplog.text
    assert any("Concat" in line for line in model.manifest.repairs)


@pytest.mark.parametrize("taken", ["row", "crop", "image"])
def test_a_weight_may_have_a_name_of_the_serving_graph(taken: str, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(ONE_CROP)
    weight = model.graph.initializer[0]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == weight.name:
                node.input[index] = taken
    weight.name = taken

    assert "max_batch_size: 1\n" in config(built(model, tmp_path))


@pytest.mark.parametrize(
    ("body", "shape", "batch"),
    [
        ("map = Reshape(stem, shape)", [2, 392], 32),
        ("map = Reshape(stem, shape)", [2, 8, 7, 7], 32),
        ("a, b = Split<axis=0>(stem) map = Concat<axis=0>(a, b)", [0], 1),
    ],
    ids=["a matrix", "a map", "halves"],
)
def test_a_batch_fixed_to_two_is_freed_or_served_crop_by_crop(
    body: str, shape: list[int], batch: int, tmp_path: Path
) -> None:
    fixed: Any = {"takes": "float[2,3,112,112] data", "gives": "float[2,64] out"}

    model = built(network(f"{STEM} {body} {HEAD}", weights=WEIGHTS | {"shape": shape}, **fixed), tmp_path)

    assert f"max_batch_size: {batch}\n" in config(model)


TWO = f"{STEM} map = Relu(stem) flat = Flatten(map) out = Gemm<transB=1>(flat, fc)"


@pytest.mark.parametrize(
    ("more", "gives"),
    [
        ("norm = ReduceL2<axes=[1]>(out)", "float[N,1] norm, float[N,64] out"),
        ("aux = Identity(map)", "float[N,64] out, float[N,8,7,7] aux"),
        ("n = ReduceL2<axes=[1]>(out) unit = Div(out, n)", "float[N,64] out, float[N,64] unit"),
    ],
    ids=["a norm", "a map", "the embedding twice"],
)
def test_the_output_with_the_embeddings_shape_is_served(more: str, gives: str, tmp_path: Path) -> None:
    built(network(f"{TWO} {more}", gives=gives), tmp_path)


def test_where_several_outputs_could_be_the_embedding_one_is_chosen_by_its_name(tmp_path: Path) -> None:
    model = network(
        f"{TWO} other = Gemm<transB=1>(flat, fc2)",
        gives="float[N,64] out, float[N,32] other",
        weights=WEIGHTS | {"fc2": (32, 392)},
    )

    with pytest.raises(NotArcFaceError, match=r"'out' \[1, 64\] \+ 'other' \[1, 32\], and each could be"):
        built(model, tmp_path)
    with pytest.raises(OptionError, match=r"no output 'feature'; it gives 'out' \[1, 64\] \+ 'other'"):
        built(model, tmp_path, output="feature")
    assert embedded(built(model, tmp_path, output="other"), face_like(2)).shape == (2, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_networks_are_fed_as_the_familys_own_code_feeds_them(family: str, tmp_path: Path) -> None:
    prepared: Any = {
        "arcface": lambda bgr: (bgr[..., ::-1] / 255 - 0.5) / 0.5,
        "adaface": lambda bgr: (bgr / 255 - 0.5) / 0.5,
        "magface": lambda bgr: bgr / 255,
        "keras_insightface": lambda bgr: (bgr[..., ::-1] - 127.5) * 0.0078125,
        "sface": lambda bgr: bgr[..., ::-1],
    }[family]
    crops, (color, normalisation) = face_like(3), FAMILIES[family]
    model = network(f"{STEM} map = Relu(stem) {HEAD}")

    served = built(model, tmp_path, color=color, normalisation=normalisation)

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    planes = prepared(crops.astype(np.float64)).transpose(0, 3, 1, 2).astype(np.float32)
    raw = session.run(None, {"data": np.ascontiguousarray(planes)})[0]
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(embedded(served, crops), expected, rtol=0, atol=TOLERANCE)
    assert served.manifest.preprocessing.channels == color.upper()
    assert served.manifest.preprocessing.assumed == ()


def test_what_the_file_does_not_show_is_told_to_be_an_assumption(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network(f"{STEM} map = Relu(stem) {HEAD}")

    assert built(model, tmp_path).manifest.preprocessing.assumed == ("channels", "normalisation")
    assert "it is served with RGB and (x - 127.5) / 127.5; say what is right with --color" in caplog.text

    stated = built(model, tmp_path, normalisation=Normalisation.parse("raw"))
    assert stated.manifest.preprocessing.assumed == ("channels",)


def training_batch_norm(model: onnx.ModelProto) -> None:
    names = ["scale", "bias", "mean", "var"]
    norm = helper.make_node("BatchNormalization", ["stem", *names], ["normed"], "bn1", training_mode=1)
    model.graph.node.insert(1, norm)
    for name in names:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), name))


def training_dropout(model: onnx.ModelProto) -> None:
    model.graph.node.insert(1, helper.make_node("Dropout", ["stem", "", "on"], ["normed"], "drop1"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "on"))


@pytest.mark.parametrize(
    ("change", "node"),
    [(training_batch_norm, "BatchNormalization 'bn1'"), (training_dropout, "Dropout 'drop1'")],
    ids=["batch norm", "dropout"],
)
def test_a_network_in_training_mode_is_refused_with_what_to_do(
    change: Any, node: str, tmp_path: Path
) -> None:
    model = network(f"{STEM} map = Relu(normed) {HEAD}")
    change(model)

    with pytest.raises(NotArcFaceError, match=rf"{node} is in training mode.* `network\.eval\(\)`"):
        built(model, tmp_path)


def test_a_network_in_int8_is_served_as_it_is(tmp_path: Path) -> None:
    model = network(f"{STEM} map = Relu(stem) {HEAD}")
    quantize_dynamic(model, tmp_path / "int8.onnx", weight_type=QuantType.QUInt8)

    served = built(onnx.load_model(tmp_path / "int8.onnx"), tmp_path)

    graph = onnx.load_model(served.path / "model.onnx").graph
    assert "ConvInteger" in str(graph)


def test_nothing_is_folded_in_a_network_that_quantises(tmp_path: Path) -> None:
    # Folding rounds otherwise. On few crops nothing shows, but on some a number then becomes another step.
    quantised = "q = QuantizeLinear(stem, step, middle) map = DequantizeLinear(q, step, middle)"
    values = {"step": np.float32(0.01), "middle": np.uint8(128)}
    model = network(f"{STEM} {quantised} {HEAD}", weights=WEIGHTS | values)

    served = built(model, tmp_path)

    kept = {tensor.name: tensor for tensor in onnx.load_model(served.path / "model.onnx").graph.initializer}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in WEIGHTS]
    assert all(np.array_equal(numpy_helper.to_array(kept[w.name]), numpy_helper.to_array(w)) for w in weights)


def test_a_file_that_onnx_runtime_optimised_for_this_processor_is_served(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = network(f"{STEM} map = Relu(stem) {HEAD}")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    built(onnx.load_model(tmp_path / "optimised.onnx"), tmp_path)
