"""Writes the nodes of a network as one exporter would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

T = TypeVar("T")
Array = npt.NDArray[Any]


class Value(NamedTuple):
    """A value of the graph: its name, and its shape without the batch."""

    name: str
    shape: tuple[int, ...]


class Writer:
    """Writes nodes as one exporter would, with choices of its own where exporters differ."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw
        self.opset = self.any_of(11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
        self.batch = self.any_of(None, None, None, 1, 1, 2)
        # A file often declares a free batch and fixes it to one inside.
        self.inner_batch = self.batch or self.any_of(None, None, None, 1)
        half = self.any_of(*[False] * 7, True)
        self.dtype: type[np.floating[Any]] = np.float16 if half else np.float32
        self.bytes_in = self.rarely()
        self._constant_nodes = self.any_of(False, True)
        self._random = np.random.RandomState(draw(st.integers(0, 2**16)))
        self._weights: dict[tuple[int, ...], Value] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []

    def any_of(self, *choices: T) -> T:
        return self._draw(st.sampled_from(choices))  # type: ignore[no-any-return]

    def rarely(self) -> bool:
        return self.any_of(*[False] * 7, True)

    def op(self, kind: str, *inputs: Value, shape: tuple[int, ...] | None = None, **attributes: Any) -> Value:
        return self.ops(kind, *inputs, shapes=[inputs[0].shape if shape is None else shape], **attributes)[0]

    def ops(
        self, kind: str, *inputs: Value, shapes: Sequence[tuple[int, ...]], **attributes: Any
    ) -> list[Value]:
        name = f"{kind}_{len(self.nodes)}"
        outputs = [Value(f"{name}.{index}", shape) for index, shape in enumerate(shapes)]
        self.nodes.append(
            helper.make_node(kind, [x.name for x in inputs], [x.name for x in outputs], name, **attributes)
        )
        return outputs

    def constant(self, array: Any, dtype: Any = None) -> Value:
        array = np.asarray(array, dtype or self.dtype)
        name = f"c{len(self.nodes)}_{len(self.tensors)}"
        tensor = numpy_helper.from_array(array, name)
        if self._constant_nodes:
            if array.dtype == np.int64 and array.ndim == 1 and self.opset >= 12:
                return self.op("Constant", shape=array.shape, value_ints=array.tolist())
            return self.op("Constant", shape=array.shape, value=tensor)
        self.tensors.append(tensor)
        return Value(name, array.shape)

    def ints(self, *numbers: int) -> Value:
        return self.constant(numbers, np.int64)

    def weight(self, *shape: int) -> Value:
        """A new weight, or one that another node uses as well, perhaps computed from constants."""
        if shape in self._weights and self.rarely():
            return self._weights[shape]
        array = self.normal(*shape) / np.sqrt(np.prod(shape[1:]) / 2)
        match self.any_of(*["plain"] * 7, "scaled", "transposed"):
            case "scaled":  # as weight standardisation and fine-tuning adapters leave it
                value = self.op("Mul", self.constant(array), self.constant(1.5))
            case "transposed":  # as converters of TensorFlow's layout leave it
                perm = [*range(1, len(shape)), 0]
                back = np.argsort(perm).tolist()
                value = self.op("Transpose", self.constant(array.transpose(perm)), shape=shape, perm=back)
            case _:
                value = self.constant(array)
        self._weights[shape] = value
        return value

    def normal(self, *shape: int) -> Array:
        return self._random.standard_normal(shape).astype(np.float32)

    def uniform(self, low: float, high: float, *shape: int) -> Value:
        return self.constant(self._random.uniform(low, high, shape))

    def bias(self, size: int) -> Value:
        """Small, since large ones make all images alike."""
        return self.uniform(-0.1, 0.1, size)

    def by_channel(self, array: Array, rank: int = 3) -> Value:
        return self.constant(array.reshape(-1, *[1] * (rank - 1)))

    # Operators whose form depends on the opset.

    def with_axes(
        self, kind: str, x: Value, axes: Sequence[int], shape: tuple[int, ...], since: int, **attributes: Any
    ) -> Value:
        """An operator that takes its axes as an input since an opset, and as an attribute before."""
        if self.opset >= since:
            return self.op(kind, x, self.ints(*axes), shape=shape, **attributes)
        return self.op(kind, x, shape=shape, axes=list(axes), **attributes)

    def reduce(self, kind: str, x: Value, axes: Sequence[int], shape: tuple[int, ...], keep: int) -> Value:
        since = 13 if kind == "ReduceSum" else 18
        return self.with_axes(kind, x, axes, shape, since, keepdims=keep)

    def split(self, x: Value, *sizes: int) -> list[Value]:
        shapes = [(size, *x.shape[1:]) for size in sizes]
        if self.opset >= 13:
            return self.ops("Split", x, self.ints(*sizes), shapes=shapes, axis=1)
        return self.ops("Split", x, shapes=shapes, axis=1, split=list(sizes))

    def reshape(self, x: Value, *dims: int) -> Value:
        """Reshape all but the batch, in one of the ways of saying "the same batch"."""
        if self.inner_batch:
            first: int | None = self.any_of(self.inner_batch, self.inner_batch, 0, -1)
        else:
            first = self.any_of(-1, 0, None)
        if first is not None:
            return self.op("Reshape", x, self.ints(first, *dims), shape=dims)
        shape = self.op("Shape", x, shape=())
        if self.any_of(True, False):
            one = self.op("Slice", shape, self.ints(0), self.ints(1), self.ints(0), shape=())
        else:
            one = self.op("Gather", shape, self.ints(0), shape=(), axis=0)
        target = self.op("Concat", one, self.ints(*dims), shape=(), axis=0)
        return self.op("Reshape", x, target, shape=dims)

    # What networks are made of; maps are [C, H, W], tokens [T, C].

    def conv(self, x: Value, channels: int, kernel: int = 3, stride: int = 1, group: int = 1) -> Value:
        pad, before = kernel // 2, x.shape[0]
        size = tuple((dim + 2 * pad - kernel) // stride + 1 for dim in x.shape[1:])
        padding: dict[str, Any] = {"pads": [pad] * 4}
        if self.rarely():
            padding = {"auto_pad": "SAME_UPPER"}
        elif kernel == 3 and stride == 1 and self.rarely():
            padding = {"pads": [2] * 4, "dilations": [2, 2]}
        return self.op(
            "Conv",
            x,
            self.weight(channels, before // group, kernel, kernel),
            *([self.bias(channels)] if self.any_of(True, False) else []),
            shape=(channels, *size),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            group=group,
            **padding,
        )

    def batch_norm(self, x: Value) -> Value:
        channels = x.shape[0]
        ranges = ((0.5, 2), (-1, 1), (-0.5, 0.5), (0.2, 2))
        fields = [self.uniform(low, high, channels) for low, high in ranges]
        return self.op("BatchNormalization", x, *fields, epsilon=self.any_of(1e-5, 2e-5, 1e-3))

    def activation(self, x: Value) -> Value:
        kinds = [
            "Relu",
            "PRelu",
            "LeakyRelu",
            "relu6",
            "silu",
            "hardswish",
            "Elu",
            "Sigmoid",
            "apart",
            "none",
        ]
        kinds += [*["HardSwish"] * (self.opset >= 14), *["Mish"] * (self.opset >= 18)]
        kinds += [*["Gelu"] * (self.opset >= 20), *["function"] * (self.opset >= 15)]
        match kind := self.any_of(*kinds):
            case "none":
                return x
            case "PRelu":
                return self.op("PRelu", x, self._slope(x))
            case "apart":
                return self._prelu_apart(x)
            case "relu6":
                return self.op("Clip", x, self.constant(0), self.constant(6))
            case "function":
                return self.op(self._silu(), x, domain="local")
            case "silu":
                return self.op("Mul", x, self.op("Sigmoid", x))
            case "hardswish":
                return self.op("Mul", x, self.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
            case _:
                return self.op(kind, x)

    def _silu(self) -> str:
        """The name of a function of the model itself, as torch's exporters write them."""
        if not self.functions:
            nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
            opsets = [helper.make_opsetid("", self.opset)]
            self.functions.append(helper.make_function("local", "silu", ["x"], ["y"], nodes, opsets))
        return "silu"

    def _slope(self, x: Value) -> Value:
        rank = self.any_of(3, 4) if len(x.shape) == 3 else 1
        slope = self._random.uniform(0.1, 0.5, x.shape[0] if len(x.shape) == 3 else x.shape[-1])
        return self.constant(slope.reshape(*[1] * (rank - 3), -1, *[1] * min(rank - 1, 2)))

    def _prelu_apart(self, x: Value) -> Value:
        slope, zero = self._slope(x), self.constant(0)
        positive = self.op("Relu", x) if self.any_of(True, False) else self.op("Max", x, zero)
        return self.op("Add", positive, self.op("Mul", self.op("Min", x, zero), slope))

    def linear(self, x: Value, features: int) -> Value:
        """On [C], or on each of the tokens [T, C]."""
        before = x.shape[-1]
        shape = (*x.shape[:-1], features)
        if len(x.shape) == 1 and self.any_of(True, False):
            turned = self.any_of(1, 1, 0)
            weight = self.weight(*((features, before) if turned else (before, features)))
            inputs = [x, weight, *([self.bias(features)] if self.any_of(True, False) else [])]
            return self.op("Gemm", *inputs, shape=shape, transB=turned, alpha=self.any_of(1.0, 1.0, 0.5))
        weight = self.constant(self.normal(before, features) / np.sqrt(before))
        product = self.op("MatMul", x, weight, shape=shape)
        return self.op("Add", product, self.bias(features)) if self.any_of(True, False) else product

    def layer_norm(self, x: Value) -> Value:
        size = x.shape[-1]
        scale, shift = self.uniform(0.5, 2, size), self.uniform(-1, 1, size)
        if self.opset >= 17 and self.any_of(True, False):
            return self.op("LayerNormalization", x, scale, shift, axis=-1)
        one = (*x.shape[:-1], 1)
        centred = self.op("Sub", x, self.reduce("ReduceMean", x, [-1], one, 1))
        variance = self.reduce("ReduceMean", self.op("Mul", centred, centred), [-1], one, 1)
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant(1e-5)))
        return self.op("Add", self.op("Mul", self.op("Div", centred, deviation), scale), shift)
