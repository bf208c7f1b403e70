"""Read a serving graph as the layers that this runtime has, or refuse it. Needs no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from ...contract import CROP_SIZE, INPUT_NAME, OUTPUT_NAME
from ...errors import DAMAGE, DeploymentError
from .network import Affine, Array, Convolution, Layer, Network, Rounding, Value

CHANNEL_STEP: Final = 32
"""Channels come in multiples of this: what a tensor core multiplies at a time."""

MOST_FIRST_CHANNELS: Final = 128
"""Of the first convolution, whose weights have to fit the registers."""


def read_network(path: Path) -> Network:
    """Read a serving graph.

    Raises:
        DeploymentError: The file is missing or is not an ONNX file, or its graph is not of this kind; the
            message names the first node that is not known.
    """
    if not path.is_file():
        raise DeploymentError(f"No model file at {path}; build one with `arcface-builder build`.")
    try:
        return _Reader(path, onnx.load(path).graph).read()
    except (*DAMAGE, DecodeError, onnx.checker.ValidationError) as error:
        raise DeploymentError(f"{path} is not a readable ONNX file: {error}") from error


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
        self._quantised: dict[str, tuple[Array, Array]] = {}  # weights in int8, and their steps
        self._rounded_from: dict[str, Value] = {}
        self._done: set[str] = set()  # outputs of nodes that became part of a layer
        self._layers: list[Layer] = []

    def read(self) -> Network:
        mean = self._preprocessing()
        for node in self._nodes:
            if node.output[0] in self._done:
                continue
            if node.op_type == "Flatten":
                features, gemm, bias = self._head(node)
                break
            if node.op_type == "Conv":
                self._convolution(node)
            elif node.op_type == "BatchNormalization":
                self._batch_norm(node)
            elif node.op_type == "QuantizeLinear":
                self._quantise(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantise(node)
            else:
                raise self._unknown(node)
        else:
            raise DeploymentError(f"cuDNN cannot run {self._path}: its graph has no Flatten and Gemm.")
        return self._network(mean, features, gemm, bias)

    def _network(self, mean: Array, features: Value, gemm: Array, bias: Array) -> Network:
        first, *rest = _as_read(self._layers, features)
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
        source, weight, scale = self._wide(node.input[0]), self._weights(node, 1, np.float16), None
        rounded, quantised = self._values.get(node.input[0]), self._quantised.get(node.input[1])
        if rounded is not None and rounded.step is not None and quantised is not None:
            source, (weight, steps) = rounded, quantised
            scale = steps * rounded.step
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
        layer = Convolution(source, output, weight, bias, step, zeros, scale=scale)
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
            residual = self._wide(other[0]) if len(other) == 1 else None
            if residual is not None and residual == replace(output, name=residual.name):
                layer = replace(layer, residual=residual, output=replace(output, name=self._take(reader)))
        self._values[layer.output.name] = layer.output
        self._layers.append(layer)

    def _quantise(self, node: onnx.NodeProto) -> None:
        """Weights, or a feature map, which the convolution that computes it rounds."""
        name, (steps, kind) = node.input[0], self._steps(node)
        if name in self._constants and kind == np.int8:
            numbers = np.rint(self._weights(node, 0) / steps)
            self._constants[self._take(node)] = np.clip(numbers, -128, 127).astype(np.int8)
            return
        source = self._wide(name)
        if source is None or source.name == INPUT_NAME or steps.size > 1 or kind != np.int8:
            raise self._unknown(node)
        output = replace(source, name=self._take(node), step=float(steps.item()))
        self._values[output.name], self._rounded_from[output.name] = output, source
        index, layer = next(one for one in enumerate(self._layers) if one[1].output == source)
        if index and isinstance(layer, Convolution) and layer.rounded is None:
            self._layers[index] = replace(layer, rounded=output)
        else:  # a batch norm, or the first convolution, which has a kernel of its own
            self._layers.append(Rounding(source, output))

    def _dequantise(self, node: onnx.NodeProto) -> None:
        name, (steps, kind) = node.input[0], self._steps(node)
        if name in self._constants:
            numbers, output = self._weights(node, 0), self._take(node)
            self._constants[output] = numbers * steps
            if kind == np.int8:
                self._quantised[output] = (numbers, np.resize(steps.reshape(-1), len(numbers)))
            return
        source = self._values.get(name)
        if source is None or source.step is None or steps.size > 1 or float(steps.item()) != source.step:
            raise self._unknown(node)
        self._values[self._take(node)] = source

    def _steps(self, node: onnx.NodeProto) -> tuple[Array, np.dtype[Any]]:
        """What the numbers of a Q or DQ are multiples of, by output channel or not, and their type."""
        steps, attributes = self._weights(node, 1), _attributes(node)
        zero = self._constants.get(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        axis = attributes.get("axis", 1) if steps.size > 1 else 0
        is_symmetric = zero is not None and not zero.any() and (steps > 0).all()
        if zero is None or not is_symmetric or axis or attributes.get("block_size"):
            raise self._unknown(node)
        rank = np.ndim(self._constants.get(node.input[0], steps))
        return steps if steps.size == 1 else steps.reshape(-1, *[1] * (rank - 1)), zero.dtype

    def _wide(self, name: str) -> Value | None:
        """A feature map in FP16: that before the rounding, if it is rounded."""
        value = self._values.get(name)
        return None if value is None else self._rounded_from.get(value.name, value)

    def _batch_norm(self, node: onnx.NodeProto) -> None:
        source = self._wide(node.input[0])
        if source is None or source.name == INPUT_NAME:
            raise self._unknown(node)
        gamma, beta, mean, variance = (self._weights(node, index).astype(np.float64) for index in range(1, 5))
        scale = gamma / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
        output = self._values[node.output[0]] = replace(source, name=self._take(node))
        shift = (beta - mean * scale).astype(np.float32)
        self._layers.append(Affine(source, output, scale.astype(np.float32), shift))

    def _head(self, flatten: onnx.NodeProto) -> tuple[Value, Array, Array]:
        """Flatten, Gemm, ReduceL2 and Div; returns what they read, and the Gemm."""
        source = self._wide(flatten.input[0])
        last = next((one.output for one in reversed(self._layers) if not isinstance(one, Rounding)), None)
        if source is None or _attributes(flatten).get("axis", 1) != 1 or source != last:
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
        return source, weight.reshape(len(weight), source.channels, pixels).transpose(2, 0, 1), bias

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


def _as_read(layers: list[Layer], features: Value) -> Iterator[Layer]:
    """Leave out what no layer reads: a feature map may be needed in FP16, in int8, or in both."""
    read = {features.name, *(value.name for layer in layers for value in layer.sources)}
    for layer in layers:
        outputs = [value for value in layer.outputs if value.name in read]
        if isinstance(layer, Convolution) and outputs:
            layer = replace(layer, output=outputs[0], rounded=outputs[1] if len(outputs) > 1 else None)
        if outputs:
            yield layer
