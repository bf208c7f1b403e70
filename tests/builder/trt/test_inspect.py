"""What inspectors say, version by version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcface_builder.errors import CompileError, PrecisionError
from arcface_builder.trt.inspect import LayerPrecisions, check_precision, layer_precisions

# Layers of each kind out of what TensorRT 8.5.3.1 said of an IResNet-18 in FP16 on an H200. With dynamic
# shapes it gives no tensor's format, although the context had its shapes set; a convolution has the type of
# its weights.
VERSION_8 = json.loads(Path(__file__).with_name("inspector-8.5.3.json").read_text())

# Written after TensorRT's documentation; no inspector of TensorRT 10 or 11 was available.
VERSION_11 = {
    "Layers": [
        {
            "Name": "conv1",
            "LayerType": "conv",
            "Inputs": [{"Name": "x", "Format": "Row major linear", "DataType": "BFloat16"}],
        },
        {
            "Name": "conv2",
            "LayerType": "conv",
            "Inputs": [{"Name": "x", "Format": "Row major linear", "Datatype": "Half"}],
        },
        {
            "Name": "unit",
            "LayerType": "kgen",
            "Inputs": [{"Name": "x", "Format": "Row major linear", "DataType": "Float"}],
        },
    ],
    "I/O Tensors": ["image", "embedding"],
}


@pytest.mark.parametrize(
    ("said", "layers", "convolutions"),
    [
        (VERSION_8, {"fp16": 3}, {"fp16": 3}),
        (VERSION_11, {"bf16": 1, "fp16": 1, "fp32": 1}, {"bf16": 1, "fp16": 1}),
        ({"Layers": ["conv1", "conv2"]}, {}, {}),
    ],
    ids=["8.5", "11", "names only"],
)
def test_layers_are_counted_by_type(
    said: object, layers: dict[str, int], convolutions: dict[str, int]
) -> None:
    assert layer_precisions(json.dumps(said)) == (LayerPrecisions(layers, convolutions),)


def test_each_optimisation_profile_is_counted_by_itself() -> None:
    first = VERSION_8["Layers"]
    second = [{**layer, "Name": f"{layer['Name']} [profile 1]"} for layer in first]

    both = layer_precisions(json.dumps({"Layers": [*first, *second]}))

    assert both == (LayerPrecisions({"fp16": 3}, {"fp16": 3}),) * 2


@pytest.mark.parametrize("said", ["", "[]", "{}", "null"])
def test_a_report_without_layers_is_refused(said: str) -> None:
    with pytest.raises(CompileError, match="TensorRT's inspector reports no layers"):
        layer_precisions(said)


@pytest.mark.parametrize(
    ("precision", "convolutions"),
    [
        ("fp32", {"fp32": 53}),
        ("tf32", {"fp32": 53}),
        ("fp16", {"fp16": 52, "fp32": 1}),
        ("bf16", {"bf16": 53}),
        ("int8", {"int8": 50, "fp16": 3}),
    ],
)
def test_a_plan_that_runs_in_its_precision_passes(precision: str, convolutions: dict[str, int]) -> None:
    check_precision(LayerPrecisions(convolutions, convolutions), precision)


@pytest.mark.parametrize(
    ("precision", "convolutions", "found"),
    [
        ("fp16", {"fp32": 53}, "53 in fp32"),
        ("int8", {"fp16": 53}, "53 in fp16"),
        ("fp32", {"fp32": 52, "fp16": 1}, "1 in fp16, 52 in fp32"),
    ],
)
def test_a_plan_that_runs_in_another_precision_is_refused(
    precision: str, convolutions: dict[str, int], found: str
) -> None:
    with pytest.raises(PrecisionError, match=f"The plan named {precision} .*: {found}; expected"):
        check_precision(LayerPrecisions(convolutions, convolutions), precision)


def test_a_plan_without_convolutions_is_judged_by_its_layers() -> None:
    check_precision(LayerPrecisions({"fp16": 3, "fp32": 1}, {}), "fp16")
    with pytest.raises(PrecisionError, match="runs its layers in other precisions: 3 in fp16; expected all"):
        check_precision(LayerPrecisions({"fp16": 3}, {}), "fp32")
    with pytest.raises(PrecisionError, match="lists no layer with a type in the plan named fp16"):
        check_precision(LayerPrecisions({}, {}), "fp16")
