"""Networks that are no IResNets, written as torch, TensorFlow and quantisers write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser
from onnxruntime.quantization import QuantType, quantize_dynamic

from arcface_builder.build import BuiltModel, build
from arcface_builder.check.accuracy import TOLERANCE
from arcface_builder.check.crops import face_like
from arcface_builder.errors import NotArcFaceError, OptionError
from arcface_builder.source.load import OnnxFile
from arcface_client.contract import Crops, Embeddings
from arcface_client.models.normalisation import FAMILIES, Normalisation
from arcface_client.runtimes.onnxruntime import OnnxRuntime

STEM = "stem = Conv<kernel_shape=[16,16], strides=[16,16]>(data, w)"  # [N, 8, 7, 7]
HEAD = "flat = Flatten(map) out = Gemm<transB=1>(flat, fc)"
WEIGHTS = {"w": (8, 3, 16, 16), "fc": (64, 392)}


def network(
    body: str,
    *,
    opset: int = 17,
    takes: str = "float[N,3,112,112] data",
    gives: str = "float[N,64] out",
    weights: Mapping[str, Any] = WEIGHTS,
) -> onnx.ModelProto:
    """A network in ONNX's text form; weights are arrays, or shapes of random ones."""
    random = np.random.RandomState(0)
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> net ({takes}) => ({gives}) {{ {body} }}'
    )
    for name, weight in weights.items():
        if isinstance(weight, tuple):
            weight = (random.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(weight), name))
    return model


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


NETWORKS = {
    # B: reshapes that carry no batch
    "flatten of two axes": network(
        f"""{STEM}
        shape = Shape(stem) lead = Slice(shape, zero, two, zero) target = Concat<axis=0>(lead, rest)
        tokens = Reshape(stem, target) turned = Transpose<perm=[0,2,1]>(tokens)
        map = MatMul(turned, square) {HEAD}""",
        weights=WEIGHTS | {"zero": [0], "two": [2], "rest": [-1], "square": (8, 8)},
    ),
    "pads in pairs": network(
        f"""{STEM}
        pairs = Reshape(pads, two_columns) turned = Transpose<perm=[1,0]>(pairs)
        row = Reshape(turned, one_row) padded = Pad(stem, row)
        map = Conv<kernel_shape=[3,3]>(padded, inner) {HEAD}""",
        weights=WEIGHTS
        | {"pads": [0, 0, 0, 0, 1, 1, 1, 1], "two_columns": [-1, 2], "one_row": [-1], "inner": (8, 8, 3, 3)},
    ),
    "slopes viewed as a map": network(
        f"""{STEM} slopes = Reshape(slope, view) map = PRelu(stem, slopes) {HEAD}""",
        weights=WEIGHTS | {"slope": (8,), "view": [1, 8, 1, 1]},
    ),
    # C: the image's shape
    "class token": network(
        f"""
        shape = Shape(data) batch = Gather<axis=0>(shape, first) rest = Constant<value_ints=[1, 8]>()
        as_list = Unsqueeze(batch, zero) target = Concat<axis=0>(as_list, rest) tokens = Expand(token, target)
        {STEM}
        rows = Reshape(stem, to_rows) turned = Transpose<perm=[0,2,1]>(rows)
        all = Concat<axis=1>(tokens, turned) mixed = Softmax<axis=1>(all)
        mean = ReduceMean<axes=[1],keepdims=0>(mixed) out = Gemm<transB=1>(mean, fc)""",
        weights={
            "w": (8, 3, 16, 16),
            "fc": (64, 8),
            "token": (1, 1, 8),
            "first": np.int64(0),
            "zero": [0],
            "to_rows": [0, 8, 49],
        },
    ),
    # D: operators and forms of opset 18 and newer
    "opset 18": network(
        f"""{STEM}
        a, b = Split<axis=1, num_outputs=2>(stem) joined = Concat<axis=1>(a, b)
        padded = Pad(joined, pads, , axes) soft = Mish(padded)
        mean = ReduceMean<keepdims=1, noop_with_empty_axes=0>(soft, axes) scaled = Mul(soft, mean)
        map = Resize<mode="nearest", axes=[2,3]>(scaled, , , sizes) {HEAD}""",
        opset=18,
        weights={
            "w": (8, 3, 16, 16),
            "fc": (64, 800),
            "pads": [0, 0, 1, 1],
            "axes": [2, 3],
            "sizes": [10, 10],
        },
    ),
    "opset 20": network(f"{STEM} map = Gelu(stem) {HEAD}", opset=20),
    "opset 21": network(
        f"{STEM} map = GroupNormalization<num_groups=4>(stem, scale, bias) {HEAD}",
        opset=21,
        weights=WEIGHTS | {"scale": (8,), "bias": (8,)},
    ),
    # E: shapes of outputs
    "[N, D, 1, 1]": network(
        f"{STEM} out = Conv<kernel_shape=[7,7]>(stem, head)",
        gives="float[N,64,1,1] out",
        weights={"w": (8, 3, 16, 16), "head": (64, 8, 7, 7)},
    ),
    "[D] of a batch of one": network(
        f"{STEM} flat = Reshape(stem, one_row) row = Gemm<transB=1>(flat, fc) out = Squeeze(row, zero)",
        takes="float[1,3,112,112] data",
        gives="float[64] out",
        weights=WEIGHTS | {"one_row": [1, 392], "zero": [0]},
    ),
    # H: weights that are computed
    "normalised weights": network(
        f"""{STEM} map = Relu(stem) flat = Flatten(map)
        length = ReduceL2<axes=[1]>(fc) unit = Div(fc, length) out = Gemm<transB=1>(flat, unit)"""
    ),
    "standardised convolution": network(
        f"""mean = ReduceMean<axes=[1,2,3]>(raw) w = Sub(raw, mean) {STEM} map = Relu(stem) {HEAD}""",
        weights={"raw": (8, 3, 16, 16), "fc": (64, 392)},
    ),
    # J: other widths, other layouts
    "192 numbers, channels last": network(
        f"data = Transpose<perm=[0,3,1,2]>(image) {STEM} map = Relu(stem) {HEAD}",
        takes="float[N,112,112,3] image",
        gives="float[N,192] out",
        weights={"w": (8, 3, 16, 16), "fc": (192, 392)},
    ),
    "no convolution": network(
        "flat = Flatten(data) out = Gemm<transB=1>(flat, fc)", weights={"fc": (64, 3 * 112 * 112)}
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_that_onnx_runtime_runs_is_served_with_its_own_embeddings(
    name: str, tmp_path: Path
) -> None:
    model = built(NETWORKS[name], tmp_path)

    assert "max_batch_size: 32" in config(model)


def test_a_batch_fixed_to_one_that_cannot_be_freed_is_served_crop_by_crop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = built(
        network(
            f"""{STEM} rows = Reshape(stem, to_rows) turned = Transpose<perm=[0,2,1]>(rows)
            all = Concat<axis=1>(token, turned) soft = Softmax<axis=1>(all)
            mean = ReduceMean<axes=[1],keepdims=0>(soft) out = Gemm<transB=1>(mean, fc)""",
            takes="float[1,3,112,112] data",
            gives="float[1,64] out",
            weights={"w": (8, 3, 16, 16), "fc": (64, 8), "token": (1, 1, 8), "to_rows": [1, 8, 49]},
        ),
        tmp_path,
    )

    assert "max_batch_size: 1\n" in config(model)
    assert "the network runs on one batch size only" in caplog.text
    assert any("Concat" in line for line in model.manifest.repairs)


@pytest.mark.parametrize("rest", [[2, 392], [2, 8, 7, 7]], ids=["a matrix", "a map"])
def test_a_batch_fixed_to_two_is_freed(rest: list[int], tmp_path: Path) -> None:
    model = built(
        network(
            f"{STEM} map = Reshape(stem, shape) {HEAD}",
            takes="float[2,3,112,112] data",
            gives="float[2,64] out",
            weights=WEIGHTS | {"shape": rest},
        ),
        tmp_path,
    )

    assert "max_batch_size: 32" in config(model)


def test_a_batch_fixed_to_two_that_cannot_be_freed_is_served_crop_by_crop(tmp_path: Path) -> None:
    model = built(
        network(
            f"{STEM} a, b = Split<axis=0>(stem) map = Concat<axis=0>(a, b) {HEAD}",
            takes="float[2,3,112,112] data",
            gives="float[2,64] out",
        ),
        tmp_path,
    )

    assert "max_batch_size: 1\n" in config(model)


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
    assert "assumed: RGB and (x - 127.5) / 127.5; see --color, --normalisation and --family" in caplog.text

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


def test_a_file_that_onnx_runtime_optimised_for_this_processor_is_served(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = network(f"{STEM} map = Relu(stem) {HEAD}")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    built(onnx.load_model(tmp_path / "optimised.onnx"), tmp_path)
