"""A small ArcFace-like network, written as different exporters write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Export = Callable[[onnx.ModelProto], onnx.ModelProto]
_CHANNELS = 8
_FLAT = _CHANNELS * 7 * 7


def small_arcface(seed: int = 0, *, channels: int = _CHANNELS) -> onnx.ModelProto:
    """A network with every structure of an IResNet, as small as a photograph: opset 11, free batch.

    The stem, a block with a convolution on its shortcut, a block without, and the head.
    float32 RGB [N, 3, 112, 112] in, raw float32 [N, 512] out.
    """
    random = np.random.RandomState(seed)
    weights: dict[str, npt.NDArray[Any]] = {}

    def weight(name: str, *shape: int) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        weights[name] = (random.standard_normal(shape) * scale).astype(np.float32)
        return name

    def batch_norm(value: str, name: str, channels: int) -> str:
        for field, low, high in (("weight", 0.5, 2), ("bias", -1, 1), ("mean", -0.5, 0.5), ("var", 0.2, 2)):
            weights[f"{name}.{field}"] = random.uniform(low, high, channels).astype(np.float32)
        parameters = [f"{name}.{field}" for field in ("weight", "bias", "mean", "var")]
        nodes.append(helper.make_node("BatchNormalization", [value, *parameters], [name], name, epsilon=2e-5))
        return name

    def conv(value: str, name: str, inputs: int = channels, *, size: int = 3, stride: int = 1) -> str:
        kernel = weight(f"{name}.weight", channels, inputs, size, size)
        shape: dict[str, Any] = {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", [value, kernel], [name], name, **shape))
        return name

    def prelu(value: str, name: str) -> str:
        weights[f"{name}.slope"] = random.uniform(0.1, 0.5, (channels, 1, 1)).astype(np.float32)
        nodes.append(helper.make_node("PRelu", [value, f"{name}.slope"], [name], name))
        return name

    def block(value: str, number: int, *, stride: int = 1) -> str:
        inner = conv(batch_norm(value, f"bn{number}a", channels), f"conv{number}")
        inner = prelu(batch_norm(inner, f"bn{number}b", channels), f"prelu{number}")
        inner = conv(inner, f"conv{number + 1}", stride=stride)
        inner = batch_norm(inner, f"bn{number + 1}", channels)
        if stride > 1:
            beside = conv(value, f"downsample{number}", size=1, stride=stride)
            value = batch_norm(beside, f"bn{number}c", channels)
        nodes.append(helper.make_node("Add", [inner, value], [f"sum{number}"], f"sum{number}"))
        return f"sum{number}"

    nodes: list[onnx.NodeProto] = []
    value = prelu(batch_norm(conv("data", "conv1", 3, stride=4), "bn1", channels), "prelu1")
    value = block(block(value, 2, stride=4), 4)
    value = batch_norm(value, "bn6", channels)
    nodes.append(helper.make_node("Dropout", [value], ["dropped"], "dropout"))
    nodes.append(helper.make_node("Flatten", ["dropped"], ["flat"], "flatten", axis=1))
    weights["fc.bias"] = random.standard_normal(512).astype(np.float32)
    nodes.append(
        helper.make_node(
            "Gemm", ["flat", weight("fc.weight", 512, channels * 7 * 7), "fc.bias"], ["fc"], "fc", transB=1
        )
    )
    batch_norm("fc", "features", 512)
    return _model(nodes, weights, opset=11, output="features")


def save_for_insightface(folder: Path, seed: int = 0) -> Path:
    """Save a network as InsightFace's packs hold theirs, as ``source-{seed}.onnx``."""
    path = folder / f"source-{seed}.onnx"
    onnx.save_model(pytorch_pack(small_arcface(seed)), path)
    return path


def as_is(model: onnx.ModelProto) -> onnx.ModelProto:
    return model


def pytorch_pack(model: onnx.ModelProto) -> onnx.ModelProto:
    """As torch2onnx.py writes the packs: 'None' in, a batch of one out."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "None"
    _fix_batch(model.graph.output[0])
    return model


def constant_reshape(model: onnx.ModelProto) -> onnx.ModelProto:
    """A batch of one at input and output, and in a Reshape."""
    _fix_batch(model.graph.input[0])
    _fix_batch(model.graph.output[0])
    (flatten,) = (node for node in model.graph.node if node.op_type == "Flatten")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, _FLAT]), "flat_shape"))
    flatten.CopyFrom(helper.make_node("Reshape", ["dropped", "flat_shape"], ["flat"], "reshape"))
    return model


def negative_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """dim_value -1, as some tools write for "any"."""
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    return model


def mxnet(model: onnx.ModelProto) -> onnx.ModelProto:
    """As MXNet's converters write it: bytes in, 127.5 and 1/128 in the graph, opset 8, weights as inputs."""
    _prepend(
        model,
        [
            helper.make_node("Sub", ["data", "scalar0"], ["minus"], "_minusscalar0"),
            helper.make_node("Mul", ["minus", "scalar1"], ["prepared"], "_mulscalar0"),
        ],
        {"scalar0": np.array([127.5], np.float32), "scalar1": np.array([0.0078125], np.float32)},
    )
    _fix_batch(model.graph.input[0])
    _fix_batch(model.graph.output[0])
    model.opset_import[0].version = 8
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return model


def mxnet_broken(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the issues that keep it from running: spatial=0, and PRelu slopes of [C]."""
    model = mxnet(model)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("spatial", 0))
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".slope"):
            del tensor.dims[1:]
    for value in model.graph.input:
        if value.name.endswith(".slope"):
            del value.type.tensor_type.shape.dim[1:]
    return model


def batch_norm_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The normalisation written as a BatchNormalization of bytes."""
    constants = {
        "n.weight": np.ones(3, np.float32),
        "n.bias": np.zeros(3, np.float32),
        "n.mean": np.full(3, 127.5, np.float32),
        "n.var": np.full(3, 128.0**2, np.float32),
    }
    node = helper.make_node("BatchNormalization", ["data", *constants], ["prepared"], epsilon=0.0)
    return _prepend(model, [node], constants)


def unit_range(model: onnx.ModelProto) -> onnx.ModelProto:
    """(x - 0.5) / 0.5 in the graph: the caller gives pixels as 0 to 1."""
    nodes = [
        helper.make_node("Add", ["half", "data"], ["a"]),
        helper.make_node("Div", ["a", "divisor"], ["prepared"]),
    ]
    return _prepend(model, nodes, {"half": np.float32(-0.5), "divisor": np.float32(0.5)})


def gathered_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph takes BGR and reverses the channels itself."""
    node = helper.make_node("Gather", ["data", "bgr"], ["prepared"], axis=1)
    return _prepend(model, [node], {"bgr": np.array([2, 1, 0])})


def sliced_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    constants = {"start": np.array([2]), "end": np.array([-9]), "axis": np.array([1]), "step": np.array([-1])}
    return _prepend(model, [helper.make_node("Slice", ["data", *constants], ["prepared"])], constants)


def split_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Split", ["data"], ["r", "g", "b"], axis=1, split=[1, 1, 1]),
        helper.make_node("Concat", ["b", "g", "r"], ["prepared"], axis=1),
    ]
    return _prepend(model, nodes, {})


def bytes_channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """uint8 [N, 112, 112, 3] RGB in, with a mean and std for each channel in the graph."""
    nodes = [
        helper.make_node("Cast", ["data"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["c"], ["i"]),
        helper.make_node("Sub", ["i", "mean"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["t", "scale"], ["prepared"]),
    ]
    scale = (1 / np.array([58.395, 57.12, 57.375], np.float32)).reshape(3, 1, 1)
    model = _prepend(model, nodes, {"mean": np.array([123.675, 116.28, 103.53], np.float32), "scale": scale})
    image = helper.make_tensor_value_info("data", TensorProto.UINT8, ["N", 112, 112, 3])
    model.graph.input[0].CopyFrom(image)
    return model


def unit_length(model: onnx.ModelProto) -> onnx.ModelProto:
    """The output is L2-normalised already."""
    node = helper.make_node("LpNormalization", ["features"], ["unit"], axis=1, p=2)
    return _append(model, [node], "unit")


def torch_normalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """As torch.nn.functional.normalize is exported."""
    nodes = [
        helper.make_node("ReduceL2", ["features"], ["norm"], axes=[1], keepdims=1),
        helper.make_node("Clip", ["norm", "epsilon"], ["positive"]),
        helper.make_node("Shape", ["features"], ["like"]),
        helper.make_node("Expand", ["positive", "like"], ["divisor"]),
        helper.make_node("Div", ["features", "divisor"], ["unit"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e-12, np.float32), "epsilon"))
    return _append(model, nodes, "unit")


def divided_by_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """As x / x.norm() is exported."""
    nodes = [
        helper.make_node("ReduceL2", ["features"], ["norm"], axes=[1], keepdims=1),
        helper.make_node("Div", ["features", "norm"], ["unit"]),
    ]
    return _append(model, nodes, "unit")


def half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything in float16, inputs and outputs too."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def half_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same, with the weights as Constant nodes."""
    model = half_weights(model)
    for index, tensor in enumerate(model.graph.initializer):
        model.graph.node.insert(index, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    return model


def half_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 network that takes float16."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return _prepend(model, [helper.make_node("Cast", ["data"], ["prepared"], to=TensorProto.FLOAT)], {})


def half_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 network that gives float16."""
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return _append(model, [helper.make_node("Cast", ["features"], ["half"], to=TensorProto.FLOAT16)], "half")


def shapeless_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """The output's shape is left out."""
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def spatial_at_any_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """spatial=0 at an opset that no longer has it, as MXNet's exporter writes it."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("spatial", 0))
    return model


def newest_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.version_converter.convert_version(model, 21)
    model.ir_version = 10
    return model


EXPORTS: Mapping[str, Export] = {
    export.__name__: export
    for export in (
        as_is,
        pytorch_pack,
        constant_reshape,
        negative_batch,
        mxnet,
        mxnet_broken,
        batch_norm_first,
        unit_range,
        gathered_channels,
        sliced_channels,
        split_channels,
        bytes_channels_last,
        unit_length,
        torch_normalize,
        divided_by_norm,
        half_weights,
        half_constants,
        half_input,
        half_output,
        shapeless_output,
        spatial_at_any_opset,
        newest_opset,
    )
}
"""All exports by name."""


def _model(
    nodes: list[onnx.NodeProto], weights: Mapping[str, npt.NDArray[Any]], *, opset: int, output: str
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 512])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def _fix_batch(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.shape.dim[0].dim_value = 1


def _prepend(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, npt.NDArray[Any] | np.float32],
) -> onnx.ModelProto:
    """Put nodes that make "prepared" of "data" before the first convolution."""
    (first,) = (node for node in model.graph.node if "data" in node.input)
    first.input[0] = "prepared"
    for index, node in enumerate(nodes):
        model.graph.node.insert(index, node)
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    model.graph.initializer.extend(tensors)
    return model


def _append(model: onnx.ModelProto, nodes: list[onnx.NodeProto], output: str) -> onnx.ModelProto:
    model.graph.node.extend(nodes)
    model.graph.output[0].name = output
    return model
