"""Make the serving graph of a network: crops in, unit vectors out.

The contract is ``arcface_client.contract``. Every network can be wrapped: preprocessing in front of it, the
division by the length behind it. What is recognised is made faster. Division by std and the order of the
channels go into the weights of the first convolution, which is exact because its padding is zero with any
factor. The subtraction cannot go there: at the border the mean would be another one. In FP16 it is exact,
since x - 127.5 has at most eight binary digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from arcface_client.contract import CROP_SHAPE, INPUT_NAME, OUTPUT_NAME
from arcface_client.models.normalisation import Normalisation, Triple

from .batchnorm import fold_batch_norms, fold_preactivations
from .edit import (
    BATCH,
    IR_VERSION,
    OPSET,
    bypass,
    constant,
    initializer,
    set_constant,
    tidy,
)
from .signature import Image, Output

_CONTRACT_KEY: Final = "arcface.contract"
"""Metadata key that marks a serving graph of this project; its value is the contract's version."""

_CONTRACT_VERSION: Final = "1"
_BYTES: Final = "BGR"
_AXES_ARE_INPUTS: Final = 18
"""The first opset in which ReduceL2 takes its axes as an input."""


Preparation = tuple[Normalisation, str]
"""How pixels are prepared for a network: their normalisation, and the order of channels, as "RGB"."""


def wrap(network: ir.Model, image: Image, output: Output, pixels: Preparation) -> ir.Model:
    """Put preprocessing in front of a network, and the division by the length behind it."""
    model = network.clone()
    _feed(model, image, pixels)
    _end_with_unit_vectors(model, image, output)
    return _finished(model)


def optimise(
    network: ir.Model, image: Image, output: Output, pixels: Preparation, seen: Preparation | None
) -> tuple[ir.Model, str | None]:
    """Wrap a network and fold what can be folded.

    Args:
        network: A network that was simplified; it is left as it is.
        image: Its input.
        output: Its embedding.
        pixels: What its input is given.
        seen: What its first convolution sees, the caller's and the graph's preprocessing; None if unknown.

    Returns:
        The serving graph, and why its preprocessing was not folded.
    """
    model = network.clone()
    kept = (
        _fold_preprocessing(model, image, seen) if seen else "the graph does more than normalise by channel"
    )
    if kept:
        _feed(model, image, pixels)
    fold_batch_norms(model)
    fold_preactivations(model)
    last = model.graph.outputs[0].producer()
    # TensorRT 8.5 needs a plugin library for LpNormalization; ReduceL2 and Div are built in. A Squeeze to [D]
    # holds for a batch of one.
    superfluous = ("LpNormalization", "Squeeze") if len(output.shape) == 1 else ("LpNormalization",)
    if last is not None and last.op_type in superfluous:
        bypass(last)
    _end_with_unit_vectors(model, image, output)
    return _finished(model), kept


def crop_by_crop(wrapped: ir.Model, image: Image, output: Output) -> ir.Model:
    """Let a wrapped network that runs on one batch size only take any batch, one crop after the other."""
    body = wrapped.graph
    batch, embedding = body.inputs[0], body.outputs[0]
    crop = ir.val("crop", ir.DataType.UINT8, CROP_SHAPE)
    tape = ir.tape.Tape()
    dims = initializer(body, "batch_of_crop", np.array([image.batch, *CROP_SHAPE]))
    expanded = tape.op("Expand", [crop, dims], name="batch_of_crop")
    ir.convenience.replace_all_uses_with(batch, expanded)
    body.insert_before(body[0], tape.nodes)
    tape = ir.tape.Tape()
    row = tape.op("Gather", [embedding, initializer(body, "first_row", np.array(0))], {"axis": 0}, name="row")
    body.extend(tape.nodes)
    batch.name, embedding.name = "crops", "embeddings"
    row.name, row.dtype, row.shape = "row", ir.DataType.FLOAT, ir.Shape((output.dim,))
    body.inputs[:], body.outputs[:] = [crop], [row]
    body.name = "crop"

    tape = ir.tape.Tape()
    crops = _image()
    rows = tape.op("Scan", [crops], {"body": body, "num_scan_inputs": 1}, name="crop_by_crop")
    rows.name, rows.dtype, rows.shape = OUTPUT_NAME, ir.DataType.FLOAT, ir.Shape((BATCH, output.dim))
    graph = ir.Graph([crops], [rows], nodes=tape.nodes, opset_imports=dict(body.opset_imports))
    return _finished(ir.Model(graph, ir_version=wrapped.ir_version))


def takes_one_crop(model: ir.Model) -> bool:
    """Whether a serving graph embeds the crops of a batch one after the other."""
    last = model.graph.outputs[0].producer()
    return last is not None and last.op_type == "Scan"


def one_crop(model: ir.Model) -> ir.Model:
    """What ``crop_by_crop`` does with each crop, for a batch of one: TensorRT has no such loop.

    Any other graph is returned as it is.
    """
    scan = model.graph.outputs[0].producer()
    if scan is None or scan.op_type != "Scan":
        return model
    body, crops, tape = scan.attributes["body"].as_graph(), _image(), ir.tape.Tape()
    body.opset_imports.update(model.graph.opset_imports)
    (expand,) = body.inputs[0].consumers()
    (cast,) = expand.outputs[0].consumers()
    # TensorRT takes bytes only as a network input that is cast at once.
    pixels = tape.op("Cast", [crops], {"to": ir.DataType.FLOAT}, name=cast.name)
    batch = tape.op("Expand", [pixels, expand.inputs[1]], name=expand.name)
    ir.convenience.replace_all_uses_with(cast.outputs[0], batch)
    body.remove([expand, cast], safe=True)
    body.insert_before(body[0], tape.nodes)

    row, tape = body.outputs[0], ir.tape.Tape()
    count = tape.op("Gather", [tape.op("Shape", [crops]), initializer(body, "batch_axis", np.array([0]))])
    dims = tape.op("Concat", [count, initializer(body, "row_dim", np.array(row.shape))], {"axis": 0})
    embedding = tape.op("Reshape", [row, dims], name="rows")
    body.extend(tape.nodes)
    embedding.name, embedding.dtype = OUTPUT_NAME, ir.DataType.FLOAT
    embedding.shape = ir.Shape((BATCH, *(row.shape or ())))
    body.inputs[:], body.outputs[:] = [crops], [embedding]
    return _finished(ir.Model(body, ir_version=model.ir_version))


def to_file(model: ir.Model, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """A serving graph as an ONNX file, marked as one, with further metadata."""
    model.metadata_props.clear()
    model.metadata_props.update({_CONTRACT_KEY: _CONTRACT_VERSION, **metadata})
    return ir.to_proto(model)


def is_serving_graph(proto: onnx.ModelProto) -> bool:
    """Whether a file is a serving graph of this project."""
    return any(entry.key == _CONTRACT_KEY for entry in proto.metadata_props)


def _image() -> ir.Value:
    return ir.val(INPUT_NAME, ir.DataType.UINT8, (BATCH, *CROP_SHAPE))


def _by_channel(values: Triple, channels: str) -> npt.NDArray[np.float64]:
    """Values of R, G and B in an order of channels; one number if all are the same."""
    same = len({*values}) == 1
    return np.array(values[0] if same else [values["RGB".index(channel)] for channel in channels])


def _feed(model: ir.Model, image: Image, pixels: Preparation) -> None:
    """Make what a network takes of the crops."""
    graph, crops, tape = model.graph, _image(), ir.tape.Tape()

    def with_constant(
        operator: str, value: ir.Value, name: str, array: npt.NDArray[Any], **of: int
    ) -> ir.Value:
        return tape.op(operator, [value, initializer(graph, f"pixel_{name}", array)], of, name=name)

    # TensorRT takes bytes only as a network input that is cast at once.
    value = tape.op("Cast", [crops], {"to": ir.DataType.FLOAT}, name="pixels")
    normalisation, channels = pixels
    if channels != _BYTES:
        order = np.array([_BYTES.index(channel) for channel in channels])
        value = with_constant("Gather", value, "channels", order, axis=3)
    mean, std = (_by_channel(values, channels) for values in (normalisation.mean, normalisation.std))
    if mean.any():
        value = with_constant("Sub", value, "mean", mean.astype(np.float32))
    if (std != 1).any():
        value = with_constant("Mul", value, "scale", (1 / std).astype(np.float32))
    if not image.channels_last:
        value = tape.op("Transpose", [value], {"perm": [0, 3, 1, 2]}, name="planes")
    if image.dtype != ir.DataType.FLOAT:
        value = tape.op("Cast", [value], {"to": image.dtype}, name="typed")
    graph.insert_before(graph[0], tape.nodes)
    ir.convenience.replace_all_uses_with(graph.inputs[0], value)
    graph.inputs[:] = [crops]


def _fold_preprocessing(model: ir.Model, image: Image, seen: Preparation) -> str | None:
    """Replace all that happens before the first convolution, or say why that is not possible."""
    graph, old = model.graph, model.graph.inputs[0]
    convolution = next((node for node in graph if node.op_type == "Conv" and not node.domain), None)
    weight = constant(convolution.inputs[1]) if convolution is not None else None
    if convolution is None or weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return "there is no first convolution over three channels with constant weights"
    value = convolution.inputs[0]
    if value is None or weight.dtype != np.float32:
        return "the first convolution does not compute in float32"
    shapes = []  # the image's Shape is read for the size of the batch
    before, upstream = [value], {value}
    while before:
        node = before.pop().producer()
        for given in node.inputs if node is not None else ():
            if given is not None and given not in upstream:
                upstream.add(given)
                before.append(given)
    prefix = {given.producer() for given in upstream}
    for given in (given for given in upstream if constant(given) is None):
        for node in given.consumers():
            if node.op_type == "Shape" and given in (old, value):
                shapes.append(node)
            elif node not in prefix and not (node is convolution and given is value):
                return f"{node.op_type} {node.name!r} reads the image, too"

    normalisation, channels = seen
    scaled = weight / _by_channel(normalisation.std, channels).reshape(1, -1, 1, 1)
    order = [channels.index(channel) for channel in _BYTES]
    set_constant(convolution, 1, np.ascontiguousarray(scaled[:, order]).astype(np.float32), "bgr")
    mean = initializer(graph, "pixel_mean", _by_channel(normalisation.mean, _BYTES).astype(np.float32))
    crops, tape = _image(), ir.tape.Tape()
    # TensorRT takes bytes only as a network input that is cast at once.
    pixels = tape.op("Cast", [crops], {"to": ir.DataType.FLOAT}, name="pixels")
    centred = tape.op("Sub", [pixels, mean], name="centred")
    planes = tape.op("Transpose", [centred], {"perm": [0, 3, 1, 2]}, name="planes")
    graph.insert_before(convolution, tape.nodes)
    convolution.replace_input_with(0, planes)
    for node in shapes:
        of_bytes = image.channels_last and node.inputs[0] is old
        node.replace_input_with(0, centred if of_bytes else planes)
    passes.RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [crops]
    return None


def _end_with_unit_vectors(model: ir.Model, image: Image, output: Output) -> None:
    """End with a division by the length, which stays exact in every precision.

    A source may already end with a normalisation, of which a part could run in float16.
    """
    graph, tape = model.graph, ir.tape.Tape()
    value = graph.outputs[0]
    if value.dtype not in (ir.DataType.FLOAT, None):
        value = tape.op("Cast", [value], {"to": ir.DataType.FLOAT}, name="float32")
    if output.shape != (image.batch, output.dim):
        rows = initializer(graph, "embedding_shape", np.array([-1, output.dim]))
        value = tape.op("Reshape", [value, rows], name="rows")
    if graph.opset_imports[""] < _AXES_ARE_INPUTS:
        length = tape.op("ReduceL2", [value], {"axes": [1], "keepdims": 1}, name="length")
    else:
        axes = initializer(graph, "embedding_axes", np.array([1]))
        length = tape.op("ReduceL2", [value, axes], {"keepdims": 1}, name="length")
    unit = tape.op("Div", [value, length], name="unit")
    graph.extend(tape.nodes)
    graph.outputs[:] = [unit]
    value.name, unit.name = "raw_embedding", OUTPUT_NAME
    unit.dtype, unit.shape = ir.DataType.FLOAT, ir.Shape((BATCH, output.dim))


def _finished(model: ir.Model) -> ir.Model:
    model.graph.name = "arcface"
    model.producer_name, model.producer_version, model.doc_string = "arcface-builder", None, None
    if model.graph.opset_imports[""] <= OPSET:
        model.ir_version = IR_VERSION
    tidy(model)
    passes.ClearMetadataAndDocStringPass()(model)
    nodes = list(model.graph.all_nodes())
    names = [value.name for node in nodes for value in node.outputs]
    for graph in {id(node.graph): node.graph for node in nodes if node.graph}.values():
        names += [*graph.initializers, *(value.name for value in graph.inputs)]
    if len({*names}) < len(names):  # the source's own names are any
        passes.NameFixPass()(model)
    return model
