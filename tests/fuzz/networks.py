"""Random small face networks of the operators that face networks use, as exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from arcface_client.models.normalisation import IMAGENET, MXNET, PYTORCH, RAW, UNIT, Normalisation
from fuzz.blocks import BLOCKS, pad, resize
from fuzz.writer import Value, Writer


@dataclass(frozen=True)
class Network:
    """A network, and what a careful caller must know of it.

    Attributes:
        model: Its file.
        caller: What its callers do with pixels 0 to 255.
        channels: Channel order that they give.
        channels_last: It takes [N, 112, 112, 3].
        batch: The batch that it runs on; None is any.
        dtype: What its input is.
        tolerance: How far two numbers of an embedding may be apart, which float16 rounds.
        stated: Whether the file leaves open what callers do, so that it has to be stated.
    """

    model: onnx.ModelProto
    caller: Normalisation
    channels: str
    channels_last: bool
    batch: int | None
    dtype: type[np.generic]
    tolerance: float
    stated: bool

    def __repr__(self) -> str:
        """What a failing example shows."""
        ops = " ".join(node.op_type for node in self.model.graph.node)
        return (
            f"Network(opset {self.model.opset_import[0].version}, {self.caller}, {self.channels}, "
            f"channels_last={self.channels_last}, batch={self.batch}, {self.dtype.__name__}, "
            f"stated={self.stated}: {ops})"
        )


def preprocessing(
    writer: Writer, image: Value, channels_last: bool
) -> tuple[Value, Normalisation, str, bool]:
    """Normalise in the graph, or not; to [3, 112, 112].

    Returns:
        The image, what callers do, the channel order that they give, and whether these are other ones than
        what the file lets expect.
    """
    rank = 1 if channels_last else 3
    kind = writer.any_of("none", "none", "none", "sub mul", "sub div", "steps", "unit", "batch norm")
    x, caller, channels = image, RAW, "RGB"
    if writer.bytes_in:
        kind = "sub mul" if kind in ("none", "unit") else kind
        real = helper.np_dtype_to_tensor_dtype(np.dtype(writer.dtype))
        x = writer.op("Cast", x, to=real)
    stated = writer.any_of(*[False] * 4, True)
    match kind:
        case "none":
            caller = writer.any_of(RAW, UNIT, IMAGENET, MXNET) if stated else PYTORCH
        case "sub mul":
            minus = writer.op("Sub", x, writer.constant(127.5))
            x = writer.op("Mul", minus, writer.constant(1 / 128))
        case "sub div":
            mean, std = (np.array(triple) for triple in (IMAGENET.mean, IMAGENET.std))
            minus = writer.op("Sub", x, writer.by_channel(mean, rank))
            x = writer.op("Div", minus, writer.by_channel(std, rank))
        case "steps":
            mean, std = (np.array(triple) / 255 for triple in (IMAGENET.mean, IMAGENET.std))
            x = (
                writer.op("Div", x, writer.constant(255))
                if writer.any_of(True, False)
                else writer.op("Mul", x, writer.constant(1 / 255))
            )
            x = writer.op("Sub", x, writer.by_channel(mean, rank))
            x = writer.op("Div", x, writer.by_channel(std, rank))
        case "unit":
            x = writer.op("Div", writer.op("Sub", x, writer.constant(0.5)), writer.constant(0.5))
            caller = UNIT
    if channels_last:
        x = writer.op("Transpose", x, shape=(3, 112, 112), perm=[0, 3, 1, 2])
    if kind == "batch norm":
        fields = (np.ones(3), np.zeros(3), np.full(3, 127.5), np.full(3, 128.0**2))
        x = writer.op("BatchNormalization", x, *(writer.constant(field) for field in fields), epsilon=0.0)
    if writer.any_of(*[False] * 5, True):
        x, channels = writer.op("Gather", x, writer.ints(2, 1, 0), axis=1), "BGR"
    elif stated:
        channels = writer.any_of("RGB", "BGR")
    return x, caller, channels, stated


def stem(writer: Writer, x: Value) -> tuple[Value, bool]:
    """To a map of at most 28x28; whether the image goes straight to a convolution."""
    kinds = ("conv", "conv", "conv", "pad", "crop", "pool", "resize", "patches", "twice", "grouped")
    kind = writer.any_of(*kinds)
    match kind:
        case "pad":
            x = pad(writer, x, "constant")
        case "crop":
            ends = writer.ints(108, 108)
            x = writer.op("Slice", x, writer.ints(4, 4), ends, writer.ints(2, 3), shape=(3, 104, 104))
        case "pool":
            x = writer.op("AveragePool", x, shape=(3, 56, 56), kernel_shape=[2, 2], strides=[2, 2])
        case "resize":
            x = resize(writer, x, 0.5)
    channels = writer.any_of(4, 8)
    match kind:
        case "patches":  # a vision transformer's patches without a convolution
            x = writer.op("SpaceToDepth", x, shape=(192, 14, 14), blocksize=8)
            return writer.conv(x, channels, kernel=1), False
        case "twice":  # the image goes to two convolutions
            first, second = (writer.conv(x, channels, stride=8) for _ in range(2))
            return writer.op("Add", first, second), False
        case "grouped":
            return writer.conv(x, 6, stride=8, group=3), False
    return writer.conv(x, channels, stride=8 if x.shape[1] > 60 else 4), kind == "conv"


def with_mirrored(writer: Writer, x: Value) -> Value:
    """The images, and behind them their mirror images: test-time augmentation inside a graph."""
    ends, width = writer.ints(-(2**31)), writer.ints(3)
    mirrored = writer.op("Slice", x, writer.ints(-1), ends, width, writer.ints(-1))
    writer.inner_batch = 2 * writer.inner_batch if writer.inner_batch else None
    return writer.op("Concat", x, mirrored, axis=0)


def sum_of_both(writer: Writer, row: Value) -> Value:
    """The rows of images and of mirror images, added."""
    half = writer.inner_batch // 2 if writer.inner_batch else -1
    pairs = writer.op("Reshape", row, writer.ints(2, half, *row.shape), shape=(half, *row.shape))
    return writer.reduce("ReduceSum", pairs, [0], row.shape, 0)


def attention(writer: Writer, x: Value) -> Value:
    count, width = x.shape
    heads = writer.any_of(1, 2)
    qkv = []
    for _ in range(3):
        apart = writer.reshape(writer.linear(x, width), count, heads, width // heads)
        qkv.append(writer.op("Transpose", apart, shape=(heads, count, width // heads), perm=[0, 2, 1, 3]))
    query, key, value = qkv
    turned = writer.op("Transpose", key, shape=(heads, width // heads, count), perm=[0, 1, 3, 2])
    scores = writer.op("MatMul", query, turned, shape=(heads, count, count))
    scaled = writer.op("Mul", scores, writer.constant((width // heads) ** -0.5))
    seen = writer.op("MatMul", writer.op("Softmax", scaled, axis=-1), value, shape=value.shape)
    back = writer.op("Transpose", seen, shape=(count, heads, width // heads), perm=[0, 2, 1, 3])
    return writer.linear(writer.reshape(back, count, width), width)


def transformer(writer: Writer, x: Value, image: Value) -> Value:
    """Tokens of a map through layers of attention, to a row."""
    channels, height, width = x.shape
    tokens = writer.reshape(x, channels, height * width)
    tokens = writer.op("Transpose", tokens, shape=(height * width, channels), perm=[0, 2, 1])
    head = writer.any_of("flat", "mean", "class token")
    if head == "class token":
        token = writer.constant(writer.normal(1, 1, channels))
        if writer.inner_batch:
            target = writer.ints(writer.inner_batch, 1, channels)
        else:
            shape = writer.op("Shape", writer.any_of(image, x), shape=())
            batch = writer.op("Gather", shape, writer.ints(0), shape=(), axis=0)
            target = writer.op("Concat", batch, writer.ints(1, channels), shape=(), axis=0)
        token = writer.op("Expand", token, target, shape=(1, channels))
        shape_ = (height * width + 1, channels)
        tokens = writer.op("Concat", token, tokens, shape=shape_, axis=1)
    tokens = writer.op("Add", tokens, writer.constant(0.2 * writer.normal(1, *tokens.shape)))
    for _ in range(writer.any_of(1, 2)):
        tokens = writer.op("Add", tokens, attention(writer, writer.layer_norm(tokens)))
        inner = writer.linear(writer.layer_norm(tokens), 2 * channels)
        tokens = writer.op("Add", tokens, writer.linear(writer.op("Relu", inner), channels))
    tokens = writer.layer_norm(tokens)
    if head == "flat":
        return writer.reshape(tokens, tokens.shape[0] * channels)
    if head == "mean":
        return writer.reduce("ReduceMean", tokens, [1], (channels,), 0)
    return writer.op("Gather", tokens, writer.constant(0, np.int64), shape=(channels,), axis=1)


def row_of(writer: Writer, x: Value) -> Value:
    """A map as one row."""
    channels, height, width = x.shape
    size = channels * height * width
    match writer.any_of("flatten", "flatten", "reshape", "pool", "mean", "depthwise"):
        case "flatten":
            return writer.op("Flatten", x, shape=(size,), axis=1)
        case "reshape":
            return writer.reshape(x, size)
        case "pool":
            pooled = writer.op("GlobalAveragePool", x, shape=(channels, 1, 1))
            return writer.op("Flatten", pooled, shape=(channels,), axis=1)
        case "mean":
            return writer.reduce("ReduceMean", x, [2, 3], (channels,), 0)
        case _:
            kernel = writer.weight(channels, 1, height, width)
            one = writer.op("Conv", x, kernel, shape=(channels, 1, 1), group=channels)
            return writer.with_axes("Squeeze", one, [2, 3], (channels,), 13)


def head(writer: Writer, row: Value, dim: int) -> Value:
    """A row to the embedding, perhaps by a convolution of 1x1 as mobile networks end."""
    if writer.any_of(True, True, False):
        embedding = writer.linear(row, dim)
        return writer.batch_norm(embedding) if writer.any_of(True, False) else embedding
    pixel = writer.with_axes("Unsqueeze", row, [2, 3], (*row.shape, 1, 1), 13)
    embedding = writer.batch_norm(writer.conv(pixel, dim, kernel=1))
    match writer.any_of("map", "squeeze", "flatten", "reshape"):
        case "squeeze":
            return writer.with_axes("Squeeze", embedding, [2, 3], (dim,), 13)
        case "flatten":
            return writer.op("Flatten", embedding, shape=(dim,), axis=1)
        case "reshape":
            return writer.reshape(embedding, dim)
    return embedding


NAMES = ("image", "embedding", "pixels", "centred", "planes", "length", "unit", "crops", "row", "pixel_mean")
"""Names that exporters choose and that a serving graph has, too."""


def renamed(writer: Writer, graph: onnx.GraphProto) -> None:
    """Give some values other names, the last one among them."""
    produced = [output for node in graph.node for output in node.output]
    picked = [produced[-1], *(writer.any_of(*produced) for _ in range(writer.any_of(0, 3)))]
    names = {old: writer.any_of(*NAMES) for old in picked}
    taken = [*names.values(), graph.input[0].name]
    names = {old: new for old, new in names.items() if taken.count(new) == 1}
    for node in graph.node:
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                values[index] = names.get(value, value)
    for output in graph.output:
        output.name = names.get(output.name, output.name)


def unit_length(writer: Writer, x: Value) -> Value:
    match writer.any_of("none", "none", "none", "lp", "l2", "clipped", "by hand"):
        case "none":
            return x
        case "lp":
            return writer.op("LpNormalization", x, axis=1, p=2)
        case "l2":
            return writer.op("Div", x, writer.reduce("ReduceL2", x, [1], (1,), 1))
        case "clipped":
            length = writer.op("Clip", writer.reduce("ReduceL2", x, [1], (1,), 1), writer.constant(1e-12))
            like = writer.op("Shape", x, shape=())
            return writer.op("Div", x, writer.op("Expand", length, like, shape=x.shape))
        case _:
            squares = writer.reduce("ReduceSum", writer.op("Mul", x, x), [1], (1,), 1)
            return writer.op("Div", x, writer.op("Sqrt", squares))


@st.composite
def networks(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Network:
    """Draw a network."""
    writer = Writer(draw)
    channels_last = writer.any_of(False, False, True)
    batch: int | str = writer.batch or writer.any_of("N", "batch", "None", "unk__1")
    image = Value(writer.any_of("data", "image", "input"), (112, 112, 3) if channels_last else (3, 112, 112))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(writer.dtype))
    sides: list[int | str] = ["height", "width"] if writer.rarely() else [112, 112]
    dims = [*sides, 3] if channels_last else [3, *sides]
    declared = helper.make_tensor_value_info(
        image.name, TensorProto.UINT8 if writer.bytes_in else kind, [batch, *dims]
    )

    x, caller, channels, stated = preprocessing(writer, image, channels_last)
    alone = writer.inner_batch
    both = writer.rarely()
    if both:
        x = with_mirrored(writer, x)
    x, plain = stem(writer, x)
    for _ in range(writer.any_of(0, 1, 2, 3, 4)):
        x = writer.any_of(*BLOCKS)(writer, x)
    row = (
        transformer(writer, x, x if both else image)
        if writer.any_of(True, False, False)
        else row_of(writer, x)
    )
    if both:
        row = sum_of_both(writer, row)
        writer.inner_batch = alone

    embedding = unit_length(writer, head(writer, row, writer.any_of(512, 512, 32, 128, 256)))
    single = writer.batch == 1 and len(embedding.shape) == 1 and writer.any_of(*[False] * 3, True)
    if single:  # [D] of a batch of one
        embedding = writer.with_axes("Squeeze", embedding, [0], embedding.shape, 13)
        own: list[int | str] = list(embedding.shape)
    else:
        own = [writer.any_of(batch, batch, batch, 1), *embedding.shape]
    output = helper.make_tensor_value_info(embedding.name, kind, own)
    if writer.any_of(*[False] * 5, True):
        output.type.tensor_type.ClearField("shape")
    outputs = [output]
    if not single and writer.any_of(*[False] * 5, True):  # its length as well, as AdaFace gives it
        length = writer.reduce("ReduceL2", embedding, [1], (1, *embedding.shape[1:]), 1)
        outputs.append(helper.make_tensor_value_info(length.name, kind, [batch, *length.shape]))
    graph = helper.make_graph(writer.nodes, "network", [declared], outputs, writer.tensors)
    renamed(writer, graph)
    opsets = [helper.make_opsetid("", writer.opset)]
    ir_version = helper.find_min_ir_version_for(opsets)
    if writer.functions:
        opsets.append(helper.make_opsetid("local", 1))
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=ir_version, functions=writer.functions, producer_name="fuzz"
    )
    return Network(
        model=model,
        caller=caller,
        channels=channels,
        channels_last=channels_last,
        batch=writer.inner_batch,
        dtype=np.uint8 if writer.bytes_in else writer.dtype,
        tolerance=1e-4 if writer.dtype is np.float32 else 2e-2,
        stated=stated or both or not plain,
    )
