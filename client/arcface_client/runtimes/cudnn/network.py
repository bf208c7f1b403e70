"""Read a serving graph as the layers that this runtime has, or refuse it. Needs no GPU.

The layers are those of the IResNets: convolutions, each with its bias and either a PRelu or a residual sum
behind it, batch norms that the builder could not fold, and one Gemm before the L2 normalisation. The values
between them are named as in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from ...contract import CROP_SIZE, INPUT_NAME, OUTPUT_NAME
from ...errors import DeploymentError

Array = npt.NDArray[np.float32]

CHANNEL_STEP: Final = 32
"""Channels come in multiples of this: what a tensor core multiplies at a time."""

MOST_FIRST_CHANNELS: Final = 128
"""Of the first convolution, whose weights have to fit the registers."""


@dataclass(frozen=True)
class Value:
    """A feature map between two layers, stored in FP16 with the channels last.

    Attributes:
        name: Its name in the file.
        channels: Its channels.
        size: Its height, which is also its width.
    """

    name: str
    channels: int
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of one crop's."""
        return 2 * self.channels * self.size**2


@dataclass(frozen=True)
class Affine:
    """A batch norm: ``scale * source + shift``, float32 [C] each."""

    source: Value
    output: Value
    scale: Array
    shift: Array

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it reads."""
        return (self.source,)


@dataclass(frozen=True)
class Convolution:
    """A convolution with square kernels, and what follows it.

    Attributes:
        source: What it reads.
        output: What it writes.
        weight: float32 [K, C, R, R].
        bias: float32 [K].
        stride: Its stride, in both directions.
        padding: Zeros at each border.
        slopes: Of the PRelu behind it, float32 [K]; None without one.
        residual: What is added to it; None without a sum.
    """

    source: Value
    output: Value
    weight: Array
    bias: Array
    stride: int
    padding: int
    slopes: Array | None = None
    residual: Value | None = None

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it reads."""
        return (self.source,) if self.residual is None else (self.source, self.residual)


@dataclass(frozen=True)
class Network:
    """A serving graph.

    Attributes:
        mean: Subtracted from the bytes, float32 [3], B, G, R.
        first: The convolution that reads them; it has a PRelu.
        shifted: The batch norm that reads the first convolution, which is computed with it; None without one.
        layers: The layers between, in the order to run them.
        gemm: float32 [pixels of the last feature map, D, C].
        bias: float32 [D].
    """

    mean: Array
    first: Convolution
    shifted: Affine | None
    layers: tuple[Convolution | Affine, ...]
    gemm: Array
    bias: Array

    @property
    def features(self) -> Value:
        """What the Gemm reads."""
        return self.layers[-1].output

    @property
    def dim(self) -> int:
        """Numbers in an embedding."""
        return len(self.bias)


def read_network(path: Path) -> Network:
    """Read a serving graph.

    Raises:
        DeploymentError: The file is missing or is not an ONNX file, or its graph is not of this kind; the
            message names the first node that is not known.
    """
    if not path.is_file():
        raise DeploymentError(f"No model file at {path}; build one with `arcface-builder build`.")
    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise DeploymentError(f"{path} is not a readable ONNX file: {error}") from error
    return _Reader(path, model.graph).read()


def place(layers: Iterable[Convolution | Affine], first: Sequence[Value]) -> dict[str, int]:
    """Give each feature map one of a few places in memory; those that are needed at once get different ones.

    Args:
        layers: In the order to run them.
        first: What is there before the first layer.

    Returns:
        The place of each value's name, from 0. The last layer's output is the one that stays.
    """
    layers = list(layers)
    last_reader = {value.name: number for number, layer in enumerate(layers) for value in layer.sources}
    places = {value.name: number for number, value in enumerate(first)}
    held = dict(places)
    for number, layer in enumerate(layers):
        place = next(place for place in range(len(held) + 1) if place not in held.values())
        places[layer.output.name] = held[layer.output.name] = place
        held = {name: at for name, at in held.items() if last_reader.get(name, len(layers)) > number}
    return places


class _Reader:
    """Goes along the nodes, which ONNX keeps in the order to run them."""

    def __init__(self, path: Path, graph: onnx.GraphProto) -> None:
        self._path = path
        self._nodes = [node for node in graph.node if node.op_type != "Constant"]
        self._constants: dict[str, npt.NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        for node in graph.node:
            if node.op_type == "Constant" and "value" in _attributes(node):
                self._constants[node.output[0]] = numpy_helper.to_array(_attributes(node)["value"])
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._values: dict[str, Value] = {}
        self._done: set[str] = set()  # outputs of nodes that became part of a layer
        self._layers: list[Convolution | Affine] = []

    def read(self) -> Network:
        mean = self._preprocessing()
        for node in self._nodes:
            if node.output[0] in self._done:
                continue
            if node.op_type == "Flatten":
                gemm, bias = self._head(node)
                break
            if node.op_type == "Conv":
                self._convolution(node)
            elif node.op_type == "BatchNormalization":
                self._batch_norm(node)
            else:
                raise self._unknown(node)
        else:
            raise DeploymentError(f"cuDNN cannot run {self._path}: its graph has no Flatten and Gemm.")
        return self._network(mean, gemm, bias)

    def _network(self, mean: Array, gemm: Array, bias: Array) -> Network:
        first, *rest = self._layers
        if not isinstance(first, Convolution) or not rest:
            raise DeploymentError(f"cuDNN cannot run {self._path}: it has fewer than two convolutions.")
        shape = (first.weight.shape[2], first.padding, first.residual)
        is_known = shape == (3, 1, None) and first.stride in (1, 2, 4) and first.slopes is not None
        if not is_known or len(first.bias) > MOST_FIRST_CHANNELS:
            raise DeploymentError(
                f"cuDNN cannot run {self._path}: expected a first convolution with 3x3 kernels, a padding of "
                f"1, a stride of 1, 2 or 4, a PRelu, and at most {MOST_FIRST_CHANNELS} channels."
            )
        # The first batch norm is computed with the first convolution.
        shifted = next((one for one in rest if isinstance(one, Affine) and one.source == first.output), None)
        layers = tuple(layer for layer in rest if layer is not shifted)
        return Network(mean, first, shifted, layers, gemm, bias)

    def _preprocessing(self) -> Array:
        """Cast, Sub and Transpose."""
        name, mean = INPUT_NAME, np.zeros(3, np.float32)
        for kind in ("Cast", "Sub", "Transpose"):
            node = self._sole_reader(name)
            if node is None or node.op_type != kind:
                raise self._unknown(node or self._nodes[0])
            if kind == "Sub":
                mean = np.resize(self._weights(node, 1).reshape(-1), 3)
            name = self._take(node)
        self._values[name] = Value(INPUT_NAME, 3, CROP_SIZE)
        return mean

    def _convolution(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        weight = self._weights(node, 1, np.float16)
        source = self._values.get(node.input[0])
        size, stride, padding = (
            set(attributes.get(name, default))
            for name, default in (("kernel_shape", weight.shape[2:]), ("strides", [1]), ("pads", [0]))
        )
        is_plain = (
            source is not None
            and (source.name != INPUT_NAME) == bool(self._layers)  # the first one alone reads the image
            and weight.ndim == 4
            and weight.shape[1] == source.channels  # one group
            and len(weight) % CHANNEL_STEP == 0
            and len(size) == len(stride) == len(padding) == 1
            and set(attributes.get("dilations", [1])) == {1}
            and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        )
        if not is_plain or source is None:
            raise self._unknown(node)
        bias = self._weights(node, 2) if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        (kernel,), (step,), (zeros,) = size, stride, padding
        output = Value(node.output[0], len(weight), (source.size + 2 * zeros - kernel) // step + 1)
        layer = Convolution(source, output, weight, bias, step, zeros)
        reader = self._sole_reader(self._take(node))
        if reader is not None and reader.op_type == "PRelu":
            slopes = self._weights(reader, 1)
            if slopes.size not in (1, len(weight)) or slopes.shape[1:] not in ((), (1, 1)):
                raise self._unknown(reader)
            layer = replace(layer, slopes=np.resize(slopes.reshape(-1), len(weight)))
            layer = replace(layer, output=replace(output, name=self._take(reader)))
        elif reader is not None and reader.op_type == "Add":
            # The sum belongs to the convolution that runs last of the two.
            other = [name for name in reader.input if name != node.output[0]]
            residual = self._values.get(other[0]) if len(other) == 1 else None
            if residual is not None and residual == replace(output, name=residual.name):
                layer = replace(layer, residual=residual, output=replace(output, name=self._take(reader)))
        self._values[layer.output.name] = layer.output
        self._layers.append(layer)

    def _batch_norm(self, node: onnx.NodeProto) -> None:
        source = self._values.get(node.input[0])
        if source is None or source.name == INPUT_NAME:
            raise self._unknown(node)
        gamma, beta, mean, variance = (self._weights(node, index).astype(np.float64) for index in range(1, 5))
        scale = gamma / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
        output = self._values[node.output[0]] = replace(source, name=self._take(node))
        shift = (beta - mean * scale).astype(np.float32)
        self._layers.append(Affine(source, output, scale.astype(np.float32), shift))

    def _head(self, flatten: onnx.NodeProto) -> tuple[Array, Array]:
        """Flatten, Gemm, ReduceL2 and Div."""
        source = self._values.get(flatten.input[0])
        if source is None or _attributes(flatten).get("axis", 1) != 1 or source != self._layers[-1].output:
            raise self._unknown(flatten)
        gemm = self._sole_reader(self._take(flatten))
        if gemm is None or gemm.op_type != "Gemm":
            raise self._unknown(gemm or flatten)
        attributes = _attributes(gemm)
        weight = self._weights(gemm, 1, np.float16)
        if not attributes.get("transB", 0):
            weight = weight.T
        pixels = source.size**2
        is_plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1 and not attributes.get(
            "transA", 0
        )
        if not is_plain or weight.shape[1] != source.channels * pixels:
            raise self._unknown(gemm)
        bias = self._weights(gemm, 2) if len(gemm.input) > 2 else np.zeros(len(weight), np.float32)
        raw = self._take(gemm)
        tail = [node for node in self._nodes if node.output[0] not in self._done]
        tail = tail[tail.index(self._readers[raw][0]) :] if self._readers.get(raw) else tail
        if [node.op_type for node in tail] != ["ReduceL2", "Div"] or tail[1].output[0] != OUTPUT_NAME:
            raise self._unknown(tail[0] if tail else gemm)
        # Flatten puts each channel's pixels side by side; here the channels of each pixel are.
        return weight.reshape(len(weight), source.channels, pixels).transpose(2, 0, 1), bias

    def _take(self, node: onnx.NodeProto) -> str:
        """Note that a node is part of a layer, and return its output."""
        self._done.add(node.output[0])
        return str(node.output[0])

    def _sole_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 else None

    def _weights(self, node: onnx.NodeProto, index: int, stored: type = np.float32) -> Array:
        array = self._constants.get(node.input[index])
        if array is None:
            raise self._unknown(node)
        with np.errstate(over="ignore"):
            if not np.isfinite(array.astype(stored)).all():
                raise DeploymentError(
                    f"cuDNN cannot run {self._path}: node {node.name or node.output[0]} has weights that are "
                    "NaN, infinite or too large for FP16."
                )
        return array.astype(np.float32, copy=False)

    def _unknown(self, node: onnx.NodeProto) -> DeploymentError:
        return DeploymentError(
            f"cuDNN cannot run {self._path}: its first node that is not as in an IResNet is {node.op_type} "
            f"{node.name or node.output[0]}; serve the model with ONNX Runtime or TensorRT."
        )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
