from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from arcface_builder.build import BuiltModel, build
from arcface_builder.check.accuracy import TOLERANCE
from arcface_builder.cli.app import main
from arcface_builder.errors import NotArcFaceError, NotOnnxError
from arcface_builder.source.fixes import Issue
from arcface_builder.source.inspect import Inspection, Tensor, inspect
from arcface_builder.source.load import OnnxFile
from arcface_client.models.normalisation import Normalisation
from support.exports import EXPORTS, small_arcface


def inspected(export: str, folder: Path, name: str = "model.onnx") -> Inspection:
    onnx.save_model(EXPORTS[export](small_arcface()), folder / name)
    return inspect(folder / name)


def problems(inspection: Inspection) -> str:
    return "\n".join(map(str, inspection.issues))


@pytest.mark.parametrize(
    ("export", "graph", "caller", "channels"),
    [
        ("as_is", "nothing", "(x - 127.5) / 127.5", "RGB"),
        ("mxnet", "(x - 127.5) / 128", "raw pixels 0 to 255", "RGB"),
        ("batch_norm_first", "(x - 127.5) / 128", "raw pixels 0 to 255", "RGB"),
        ("unit_range", "(x - 0.5) / 0.5", "x / 255", "RGB"),
        ("gathered_channels", "nothing", "(x - 127.5) / 127.5", "BGR"),
        ("sliced_channels", "nothing", "(x - 127.5) / 127.5", "BGR"),
        ("split_channels", "nothing", "(x - 127.5) / 127.5", "BGR"),
        (
            "bytes_channels_last",
            "(x - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375] for R, G, B",
            "raw pixels 0 to 255",
            "RGB",
        ),
    ],
)
def test_normalisation_and_channel_order_are_read_from_what_the_graph_computes(
    export: str, graph: str, caller: str, channels: str, tmp_path: Path
) -> None:
    pixels = inspected(export, tmp_path).pixels

    assert pixels
    assert (pixels.graph_normalises, pixels.caller_normalises, pixels.channels) == (graph, caller, channels)


@pytest.mark.parametrize(
    ("export", "problem"),
    [
        ("pytorch_pack", "the output's batch dimension is fixed to 1: it becomes 'N'"),
        ("pytorch_pack", "the input's batch dimension is declared as None: it becomes 'N'"),
        ("constant_reshape", "1 Reshape nodes fix the batch to a number: they take it from their input"),
        ("negative_batch", "the input's batch dimension is declared as -1: it becomes 'N'"),
        ("mxnet", "53 weights are listed as graph inputs"),
        ("mxnet", "opset 8: converted to 17"),
        ("mxnet_broken", "10 batch norms say spatial=0"),
        ("mxnet_broken", "3 PRelu slopes are [C]"),
        ("half_weights", "it computes in float16 (51 weights): computed in float32"),
    ],
)
def test_each_issue_is_reported_with_what_the_build_does_about_it(
    export: str, problem: str, tmp_path: Path
) -> None:
    assert problem in problems(inspected(export, tmp_path))


@pytest.mark.parametrize(
    ("export", "unit"),
    [("as_is", False), ("unit_length", True), ("torch_normalize", True), ("divided_by_norm", True)],
)
def test_inspect_says_whether_the_output_is_normalised(export: str, unit: bool, tmp_path: Path) -> None:
    pixels = inspected(export, tmp_path).pixels

    assert pixels
    assert pixels.unit_length is unit


def test_inspect_prints_text_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(EXPORTS["pytorch_pack"](small_arcface()), path)

    assert main(["inspect", str(path)]) == 0
    assert "caller does (x - 127.5) / 127.5 (from an assumption" in capsys.readouterr().out

    assert main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["batch"] == ["None", "1"]
    assert report["opset"] == 11


def test_inspect_of_a_file_that_a_build_refuses_shows_what_it_found_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_arcface()
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.opset_import[0].version = 14
    onnx.save_model(model, tmp_path / "model.onnx")

    assert main(["inspect", str(tmp_path / "model.onnx")]) == 1

    shown = capsys.readouterr().out
    assert "opset       14, IR version 6" in shown
    assert "! a build refuses it: BatchNormalization 'bn1' is in training mode" in shown


ONNX = small_arcface().SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"model\.onnx \(0 bytes\) holds no ONNX graph"),
        (b"<html>Not found</html>", r"model\.onnx \(22 bytes\) is not an ONNX model"),
        (ONNX[: len(ONNX) // 2], "is cut short"),
        (ONNX[:-100], "is cut short"),
        (None, "No such file"),
    ],
    ids=["empty", "web page", "half of a file", "most of a file", "missing"],
)
def test_a_file_that_is_not_an_onnx_model_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(NotOnnxError, match=message):
        inspect(path)


def no_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Convolve"


@pytest.mark.parametrize("harm", [no_data, unknown_operator])
def test_a_damaged_file_is_refused_in_one_line(
    harm: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = small_arcface()
    harm(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(NotOnnxError, match="is damaged or breaks ONNX's rules") as error:
        inspect(tmp_path / "model.onnx")

    assert "\n" not in str(error.value)


def _other_model(shape: list[int | str], output: list[int | str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["out"])],
        "other",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, output)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("shape", "output"),
    [
        ([1, 3, 640, 640], [1, 512]),
        ([1, 1, 112, 112], [1, 512]),
        ([1, 512], [1, 512]),
    ],
    ids=["detector", "grey", "vector"],
)
def test_a_model_that_is_not_an_arcface_is_described_and_refused_by_a_build(
    shape: list[int | str], output: list[int | str], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(_other_model(shape, output), path)

    inspection = inspect(path)

    assert inspection.inputs == [Tensor("image", "FLOAT", str(shape))]
    assert (inspection.opset, inspection.pixels) == (17, None)
    assert "a build refuses it: The model takes 'image' FLOAT" in inspection.to_text()
    assert inspection.to_dict()["channels"] is None


@pytest.mark.parametrize(
    ("side", "message"), [("input", "The model takes"), ("output", "ONNX Runtime cannot run the source file")]
)
def test_other_types_of_input_or_output_are_refused(side: str, message: str, tmp_path: Path) -> None:
    model = small_arcface()
    (value,) = getattr(model.graph, side)
    value.type.tensor_type.elem_type = TensorProto.DOUBLE

    assert f"a build refuses it: {message}" in refusal(model, tmp_path)


def refusal(model: onnx.ModelProto, folder: Path) -> str:
    """What inspect says about a file that a build refuses in the same words."""
    onnx.save_model(model, folder / "model.onnx")
    inspection = inspect(folder / "model.onnx")

    with pytest.raises(NotArcFaceError) as error:
        build(OnnxFile(folder / "model.onnx"), name="m", repository=folder / "models")

    assert inspection.issues[-1] == Issue("a build refuses it", str(error.value))
    return problems(inspection)


def built_with(model: onnx.ModelProto, folder: Path, **stated: Any) -> BuiltModel:
    onnx.save_model(model, folder / "model.onnx")
    return build(OnnxFile(folder / "model.onnx", **stated), name="m", repository=folder / "models")


def test_a_graph_that_does_more_than_normalise_is_served_with_it(tmp_path: Path) -> None:
    model = small_arcface()
    model.graph.node[0].input[0] = "blurred"
    pool = helper.make_node("AveragePool", ["data"], ["blurred"], kernel_shape=[3, 3], pads=[1] * 4)
    model.graph.node.insert(0, pool)

    manifest = built_with(model, tmp_path).manifest

    assert manifest.parity.max_abs_difference <= TOLERANCE
    assert any("the graph does more than normalise by channel" in line for line in manifest.repairs)
    inspection = inspect(tmp_path / "model.onnx")
    assert inspection.pixels
    assert inspection.pixels.graph_normalises == "more than to normalise by channel"


@pytest.mark.parametrize("stated", ["127.5,128", "0,255"])
@pytest.mark.parametrize("export", ["mxnet", "bytes_channels_last"])
def test_a_stated_normalisation_that_the_graph_already_does_is_used_with_a_warning(
    export: str, stated: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    normalisation = Normalisation.parse(stated)

    built_with(EXPORTS[export](small_arcface()), tmp_path, normalisation=normalisation)

    assert "so its callers give it raw pixels 0 to 255: " in caplog.text
    assert f"{normalisation} is used, as stated" in caplog.text


@pytest.mark.parametrize(
    ("export", "stated"),
    [
        ("mxnet", "0,1"),
        ("unit_range", "0,255"),
        ("as_is", "0,255"),
    ],
)
def test_a_stated_normalisation_that_fits_is_used(export: str, stated: str, tmp_path: Path) -> None:
    onnx.save_model(EXPORTS[export](small_arcface()), tmp_path / "model.onnx")
    source = OnnxFile(tmp_path / "model.onnx", Normalisation.parse(stated))

    assert source.load().caller == Normalisation.parse(stated)


def test_a_serving_graph_is_recognised_by_its_contract_and_refused_as_a_source(tmp_path: Path) -> None:
    onnx.save_model(small_arcface(), tmp_path / "source.onnx")
    built = build(OnnxFile(tmp_path / "source.onnx"), name="m", repository=tmp_path / "models")

    inspection = inspect(built.path / "model.onnx")

    assert inspection.pixels
    assert (inspection.pixels.channels, inspection.pixels.unit_length) == ("BGR", True)
    assert "this is a serving graph that arcface-builder wrote" in problems(inspection)
    with pytest.raises(NotArcFaceError, match="is a serving graph that arcface-builder wrote"):
        OnnxFile(built.path / "model.onnx").load()
