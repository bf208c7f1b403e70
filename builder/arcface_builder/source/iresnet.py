"""The IResNet of arcface_torch as an ONNX graph.

Topology and parameter names are those of ``recognition/arcface_torch/backbones/iresnet.py`` in
deepinsight/insightface, so a state dict trained there fits as it is. The graph is written like the
packs' own files: float32 RGB [N, 3, 112, 112], normalised, in; raw float32 [N, D] out, D usually 512.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from arcface_client.contract import CROP_SIZE, EMBEDDING_DIM

from ..graph.edit import IR_VERSION, OPSET

BLOCKS: Final[Mapping[str, tuple[int, int, int, int]]] = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
}
"""Residual blocks in each of the four stages, by depth."""

CHANNELS: Final = (64, 128, 256, 512)
"""Output channels of the four stages; each halves height and width, from 112 to 7."""

EPSILON: Final = 1e-5
FLAT_SIZE: Final = CHANNELS[-1] * (CROP_SIZE // 16) ** 2

Weights = Mapping[str, npt.NDArray[np.float32]]
"""Parameters by their name in the state dict."""

BatchNorm = Callable[[ir.tape.Tape, ir.Value, str], ir.Value]
"""Appends the normalisation of a value by the layer of that name, and returns the result."""


def parameter_shapes(depth: str, embedding_dim: int = EMBEDDING_DIM) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter and batch-norm statistic of a depth."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for field in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{field}"] = (channels,)

    shapes["conv1.weight"] = (CHANNELS[0], 3, 3, 3)
    norm("bn1", CHANNELS[0])
    shapes["prelu.weight"] = (CHANNELS[0],)
    before = CHANNELS[0]
    for stage, (count, channels) in enumerate(zip(BLOCKS[depth], CHANNELS, strict=True), start=1):
        for index in range(count):
            block = f"layer{stage}.{index}"
            norm(f"{block}.bn1", before)
            shapes[f"{block}.conv1.weight"] = (channels, before, 3, 3)
            norm(f"{block}.bn2", channels)
            shapes[f"{block}.prelu.weight"] = (channels,)
            shapes[f"{block}.conv2.weight"] = (channels, channels, 3, 3)
            norm(f"{block}.bn3", channels)
            if index == 0:
                shapes[f"{block}.downsample.0.weight"] = (channels, before, 1, 1)
                norm(f"{block}.downsample.1", channels)
            before = channels
    norm("bn2", CHANNELS[-1])
    shapes["fc.weight"] = (embedding_dim, FLAT_SIZE)
    shapes["fc.bias"] = (embedding_dim,)
    norm("features", embedding_dim)
    return shapes


def iresnet_model(depth: str, weights: Weights) -> ir.Model:
    """Build the network of a depth with exactly the parameters that ``parameter_shapes`` names."""

    def batch_norm(tape: ir.tape.Tape, value: ir.Value, name: str) -> ir.Value:
        fields = ("weight", "bias", "running_mean", "running_var")
        parameters = [parameter(tape, weights, f"{name}.{field}") for field in fields]
        return tape.op("BatchNormalization", [value, *parameters], {"epsilon": EPSILON}, name=name)

    tape = ir.tape.Tape()
    image = ir.val("input", ir.DataType.FLOAT, ("N", 3, CROP_SIZE, CROP_SIZE))
    flat = flat_features(tape, image, depth, weights, batch_norm)
    inputs = [flat, parameter(tape, weights, "fc.weight"), parameter(tape, weights, "fc.bias")]
    embedding = batch_norm(tape, tape.op("Gemm", inputs, {"transB": 1}, name="fc"), "features")
    embedding.name = "output"
    embedding.dtype, embedding.shape = ir.DataType.FLOAT, ir.Shape(("N", len(weights["fc.bias"])))
    return model_of(tape, image, [embedding], name=f"iresnet-{depth}")


def flat_features(
    tape: ir.tape.Tape, image: ir.Value, depth: str, weights: Weights, batch_norm: BatchNorm
) -> ir.Value:
    """Append the network up to its last layer.

    Args:
        tape: Takes the nodes.
        image: float32 [N, 3, 112, 112].
        depth: A key of ``BLOCKS``.
        weights: The parameters; those of batch norms are left to ``batch_norm``.
        batch_norm: Appends one batch norm.

    Returns:
        float32 [N, 25088], the input of ``fc``.
    """

    def conv(value: ir.Value, name: str, *, stride: int = 1) -> ir.Value:
        weight = parameter(tape, weights, f"{name}.weight")
        kernel = weights[f"{name}.weight"].shape[-1]
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return tape.op("Conv", [value, weight], attributes, name=name)

    def prelu(value: ir.Value, name: str) -> ir.Value:
        # The state dict's [C] would broadcast along the width; [C, 1, 1] goes along the channels.
        slope = weights[f"{name}.weight"].reshape(-1, 1, 1)
        return tape.op("PRelu", [value, tape.initializer(ir.tensor(slope, name=f"{name}.weight"))], name=name)

    def block(value: ir.Value, name: str, *, stride: int) -> ir.Value:
        branch = conv(batch_norm(tape, value, f"{name}.bn1"), f"{name}.conv1")
        branch = prelu(batch_norm(tape, branch, f"{name}.bn2"), f"{name}.prelu")
        branch = batch_norm(tape, conv(branch, f"{name}.conv2", stride=stride), f"{name}.bn3")
        if stride != 1:
            value = conv(value, f"{name}.downsample.0", stride=stride)
            value = batch_norm(tape, value, f"{name}.downsample.1")
        return tape.op("Add", [branch, value], name=f"{name}.add")

    value = prelu(batch_norm(tape, conv(image, "conv1"), "bn1"), "prelu")
    for stage, count in enumerate(BLOCKS[depth], start=1):
        for index in range(count):
            value = block(value, f"layer{stage}.{index}", stride=2 if index == 0 else 1)
    value = batch_norm(tape, value, "bn2")
    return tape.op("Flatten", [value], {"axis": 1}, name="flatten")


def parameter(tape: ir.tape.Tape, weights: Weights, name: str) -> ir.Value:
    """Add a parameter to the graph under its own name."""
    return tape.initializer(ir.tensor(weights[name], name=name))


def model_of(tape: ir.tape.Tape, image: ir.Value, outputs: list[ir.Value], *, name: str) -> ir.Model:
    """Make a model of this project's opset from a tape's nodes."""
    graph = ir.Graph(
        [image],
        outputs,
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": OPSET},
        name=name,
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="arcface-builder")
