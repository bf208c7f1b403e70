"""What inspectors say, as each version writes it."""

from __future__ import annotations

import json

import pytest

from arcface_builder.errors import CompileError, PrecisionError
from arcface_builder.plans.inspection import LayerPrecisions, check_precision, layer_precisions


def tensor(kind: str) -> dict[str, object]:
    return {"Name": "x", "Dimensions": [32, 64, 56, 56], "Format/Datatype": kind}


def convolution(weights: str, kind: str) -> dict[str, object]:
    return {
        "Name": "layer1.0.conv1",
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        "Inputs": [tensor(kind)],
        "Outputs": [tensor(kind)],
        "Weights": {"Type": weights, "Count": 36864},
    }


VERSION_8 = {
    "Layers": [
        {
            "Name": "pixels",
            "LayerType": "Reformat",
            "Inputs": [tensor("Row major linear UInt8")],
            "Outputs": [],
        },
        convolution("Half", "Channel major FP16 format where channel % 8 == 0"),
        convolution("Int8", "Thirty-two wide channel vectorized row major Int8 format"),
        {"Name": "prelu", "LayerType": "PointWiseV2", "Inputs": [tensor("Row major linear FP32")]},
    ],
    "Bindings": ["image", "embedding"],
}

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
        (VERSION_8, {"fp16": 1, "int8": 1, "fp32": 1}, {"fp16": 1, "int8": 1}),
        (VERSION_11, {"bf16": 1, "fp16": 1, "fp32": 1}, {"bf16": 1, "fp16": 1}),
        ({"Layers": ["conv1", "conv2"]}, {}, {}),
    ],
    ids=["8.5", "11", "names only"],
)
def test_layers_are_counted_by_type(
    said: object, layers: dict[str, int], convolutions: dict[str, int]
) -> None:
    assert layer_precisions(json.dumps(said)) == LayerPrecisions(layers, convolutions)


@pytest.mark.parametrize("said", ["", "[]", "{}", "null"])
def test_what_is_no_inspector_output_is_refused(said: str) -> None:
    with pytest.raises(CompileError, match="TensorRT's inspector says nothing of layers"):
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
def test_a_plan_that_is_what_it_is_named_passes(precision: str, convolutions: dict[str, int]) -> None:
    check_precision(LayerPrecisions(convolutions, convolutions), precision)


@pytest.mark.parametrize(
    ("precision", "convolutions", "found"),
    [
        ("fp16", {"fp32": 53}, "53 in fp32"),
        ("int8", {"fp16": 53}, "53 in fp16"),
        ("fp32", {"fp32": 52, "fp16": 1}, "1 in fp16, 52 in fp32"),
        ("fp16", {}, "none is told"),
    ],
)
def test_a_plan_that_is_not_what_it_is_named_is_refused(
    precision: str, convolutions: dict[str, int], found: str
) -> None:
    with pytest.raises(PrecisionError, match=f"The plan named {precision} .*: {found}; expected"):
        check_precision(LayerPrecisions(convolutions, convolutions), precision)
