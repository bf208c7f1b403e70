"""The blocks that networks are stacked of: a map [C, H, W] in, a map out."""

from __future__ import annotations

import numpy as np

from fuzz.writer import Value, Writer


def pad(writer: Writer, x: Value, mode: str) -> Value:
    shape = (x.shape[0], x.shape[1] + 2, x.shape[2] + 2)
    return writer.op("Pad", x, writer.ints(0, 0, 1, 1, 0, 0, 1, 1), shape=shape, mode=mode)


def resize(writer: Writer, x: Value, scale: float) -> Value:
    shape = (x.shape[0], *(int(dim * scale) for dim in x.shape[1:]))
    roi, scales = (writer.constant(array, np.float32) for array in ([], [1, 1, scale, scale]))
    mode = writer.any_of("nearest", "linear")
    return writer.op(
        "Resize", x, roi, scales, shape=shape, mode=mode, coordinate_transformation_mode="asymmetric"
    )


def conv_block(writer: Writer, x: Value) -> Value:
    group = writer.any_of(1, 1, x.shape[0])
    return writer.activation(writer.batch_norm(writer.conv(x, x.shape[0], group=group)))


def residual(writer: Writer, x: Value) -> Value:
    """As in IResNet, or with the norm behind the convolution."""
    branch = writer.batch_norm(x) if writer.any_of(True, False) else x
    branch = writer.activation(writer.batch_norm(writer.conv(branch, x.shape[0])))
    stride = writer.any_of(1, 2) if x.shape[1] > 7 else 1
    branch = writer.batch_norm(writer.conv(branch, x.shape[0], stride=stride))
    if stride > 1:
        x = writer.batch_norm(writer.conv(x, x.shape[0], kernel=1, stride=stride))
    return writer.op("Add", *writer.any_of((branch, x), (x, branch)))


def squeeze_and_excite(writer: Writer, x: Value) -> Value:
    channels = x.shape[0]
    if writer.any_of(True, False):
        seen = writer.op("GlobalAveragePool", x, shape=(channels, 1, 1))
        inner = writer.activation(writer.conv(seen, 4, kernel=1))
        weights = writer.conv(inner, channels, kernel=1)
    else:
        seen = writer.reduce("ReduceMean", x, [2, 3], (channels,), 0)
        inner = writer.activation(writer.linear(seen, 4))
        weights = writer.reshape(writer.linear(inner, channels), channels, 1, 1)
    gate = writer.op(writer.any_of("Sigmoid", "HardSigmoid"), weights)
    return writer.op("Mul", x, gate)


def shuffle(writer: Writer, x: Value) -> Value:
    channels, height, width = x.shape
    apart = writer.reshape(x, 2, channels // 2, height, width)
    swapped = writer.op("Transpose", apart, shape=(channels // 2, 2, height, width), perm=[0, 2, 1, 3, 4])
    return writer.reshape(swapped, channels, height, width)


def split_and_concat(writer: Writer, x: Value) -> Value:
    half = x.shape[0] // 2
    first, second = writer.split(x, half, half)
    return writer.op("Concat", second, writer.conv(first, half), shape=x.shape, axis=1)


def pad_and_conv(writer: Writer, x: Value) -> Value:
    padded = pad(writer, x, writer.any_of("constant", "reflect", "edge"))
    return writer.op("Conv", padded, writer.weight(x.shape[0], x.shape[0], 3, 3), shape=x.shape)


def pool(writer: Writer, x: Value) -> Value:
    if x.shape[1] < 8:
        return x
    shape = (x.shape[0], *(dim // 2 for dim in x.shape[1:]))
    kind = writer.any_of("MaxPool", "AveragePool")
    return writer.op(kind, x, shape=shape, kernel_shape=[2, 2], strides=[2, 2])


def up_and_down(writer: Writer, x: Value) -> Value:
    up = resize(writer, x, 2.0)
    return writer.conv(up, x.shape[0], stride=2) if up.shape[1] == 2 * x.shape[1] else x


def channels_last_norm(writer: Writer, x: Value) -> Value:
    """As ConvNeXt normalises, or as a TensorFlow graph computes between its transposes."""
    channels, height, width = x.shape
    last = writer.op("Transpose", x, shape=(height, width, channels), perm=[0, 2, 3, 1])
    last = writer.layer_norm(last) if writer.any_of(True, False) else writer.op("Relu", last)
    return writer.op("Transpose", last, shape=x.shape, perm=[0, 3, 1, 2])


def scale_and_shift(writer: Writer, x: Value) -> Value:
    rank = writer.any_of(3, 4)
    ones = [1] * (rank - 3)
    scaled = writer.op("Mul", x, writer.uniform(0.5, 2, *ones, x.shape[0], 1, 1))
    return writer.op(writer.any_of("Add", "Sub"), scaled, writer.uniform(-1, 1, *ones, x.shape[0], 1, 1))


def instance_norm(writer: Writer, x: Value) -> Value:
    fields = [writer.uniform(low, high, x.shape[0]) for low, high in ((0.5, 2), (-1, 1))]
    return writer.op("InstanceNormalization", x, *fields)


def quantised(writer: Writer, x: Value) -> Value:
    """A convolution of eight bits, as quantising tools write it."""
    if writer.dtype is not np.float32 or writer.opset < 13:
        return x
    step, zero = writer.constant(0.05), writer.constant(128, np.uint8)
    seen = writer.op("DequantizeLinear", writer.op("QuantizeLinear", x, step, zero), step, zero)
    channels = x.shape[0]
    weight = np.clip(np.rint(40 * writer.normal(channels, channels, 3, 3)), -127, 127)
    scales = writer.uniform(0.002, 0.01, channels)
    zeros = writer.constant(np.zeros(channels), np.int8)
    kernel = writer.op("DequantizeLinear", writer.constant(weight, np.int8), scales, zeros, axis=0)
    return writer.op("Conv", seen, kernel, shape=x.shape, pads=[1] * 4)


def nothing(writer: Writer, x: Value) -> Value:
    """Nodes that pass on their input."""
    if writer.opset >= 12 and writer.rarely():
        switch = writer.constant(np.array(False), np.bool_)
        return writer.op("Dropout", x, writer.constant(0.5, np.float32), switch)
    return writer.op(writer.any_of("Identity", "Dropout"), x)


BLOCKS = (
    conv_block,
    residual,
    residual,
    squeeze_and_excite,
    shuffle,
    split_and_concat,
    pad_and_conv,
    pool,
    up_and_down,
    channels_last_norm,
    scale_and_shift,
    instance_norm,
    quantised,
    nothing,
)
