"""Write a precision into a serving graph: uint8 in and float32 out as before, the network in between in it.

From TensorRT 10 on networks are strongly typed: the types of the graph are the types that run. TensorRT 8.5
has FP16 and INT8 flags instead and takes the graph's types as permission; the same graphs suit it, except
for INT8, where everything around the quantised layers has to be float32.

The last step, the division by the length, always stays in float32: it costs nothing, and the contract's
unit length depends on it.

INT8 comes from ``quantise``, which says what its graphs look like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from ..errors import PrecisionError
from .batchnorm import affine
from .edit import bypass, constant, first_line, initializer, parse, set_constant
from .opset import CANNOT_CONVERT, in_opset
from .serving import one_crop

_NEXT: Final = {"int8": "fp16", "mixed": "fp16", "fp16": "tf32", "bf16": "tf32", "tf32": "fp32"}
"""The next more exact precision; fp32 has none."""

_FROM_AMPERE: Final = {"tf32": "fp32", "bf16": "fp16"}
"""Precisions that need an Ampere GPU, and what to use on older ones."""

_AMPERE: Final = 80

_FLOAT32_OPS: Final = [*DEFAULT_OP_BLOCK_LIST, "ReduceL2", "ReduceSumSquare", "LpNormalization"]
"""What float16 does not have, and what sums squares, which it may not hold."""

_INTEGER: Final = re.compile("^(Dynamic)?Quantize|^Dequantize|^QLinear|Integer$")

_MOVES: Final = {"Gather", "Reshape"}

# The first opset, and the IR version of its time, in which ...
_HALF_SCALES: Final = (19, 9)  # ... the scales of Q/DQ can be float16
_BFLOAT_CONV: Final = (22, 10)  # ... a convolution takes bfloat16


def typed_graph(serving_graph: bytes, precision: str) -> bytes:
    """Write a precision into a serving graph.

    Args:
        serving_graph: An ONNX file with the contract's tensors.
        precision: fp32, tf32, fp16 or bf16; int8 for a source that is quantised already. fp32 and tf32 are
            the same graph: TF32 is a way to multiply float32 numbers, and a flag in every TensorRT.

    Raises:
        PrecisionError: The network does not allow the precision.
    """
    return _checked(parse(serving_graph), precision, _typed)


def typed_int8(quantised: bytes, precision: str, *, strongly_typed: bool = True) -> bytes:
    """Write a graph of ``quantise``, in int8 or mixed, as TensorRT takes it.

    Where TensorRT types networks strongly, all else is in float16.

    Raises:
        PrecisionError: The network does not allow it.
    """

    def write(model: ir.Model, _: str) -> ir.Model:
        _plain_batch_norms(model)
        _tidy_types(model)
        _quantise_weights(model)
        return _half(in_opset(model, *_HALF_SCALES)) if strongly_typed else model

    return _checked(parse(quantised), precision, write)


def _checked(model: ir.Model, precision: str, write: Callable[[ir.Model, str], ir.Model]) -> bytes:
    try:
        proto = ir.to_proto(write(model, precision))
        onnx.checker.check_model(proto, full_check=True)
    except (*CANNOT_CONVERT, onnx.checker.ValidationError) as error:
        raise PrecisionError(
            f"The network cannot be written in {precision} ({first_line(error)}); try another precision. "
            "The ONNX model serves as it is."
        ) from error
    return bytes(proto.SerializeToString(deterministic=True))


def is_quantised(model: ir.Model) -> bool:
    """Whether a network computes in int8 as it is, so that its plans need no calibration."""
    return any(_INTEGER.search(node.op_type) for node in model.graph.all_nodes())


def fallbacks(precision: str, sm: str) -> list[str]:
    """The more exact precisions that a GPU architecture, for example "86", has; the next one first."""
    more_exact = []
    while precision in _NEXT:
        precision = _NEXT[precision]
        more_exact.append(precision)
    return [precision for precision in more_exact if _gpu_has(precision, sm)]


def check_gpu_has(precision: str, sm: str) -> None:
    """Check that a GPU architecture, for example "86", computes in a precision.

    TensorRT builds tf32 for any GPU and runs it as fp32 on an old one, and its inspector does not show it.

    Raises:
        PrecisionError: It does not.
    """
    if not _gpu_has(precision, sm):
        raise PrecisionError(
            f"{precision} needs a GPU of sm{_AMPERE} or newer, and this one is sm{sm}; "
            f"use {_FROM_AMPERE[precision]}."
        )


def _gpu_has(precision: str, sm: str) -> bool:
    return precision not in _FROM_AMPERE or int(sm) >= _AMPERE


def _typed(model: ir.Model, precision: str) -> ir.Model:
    if is_quantised(model):
        if precision != "int8":
            raise PrecisionError("The network is quantised already: its plans have --precision int8.")
        return one_crop(model)
    model = one_crop(model)
    passes.NameFixPass()(model)  # exporters may leave nodes without a name, and the converter needs names
    _plain_batch_norms(model)
    _tidy_types(model)
    match precision:
        case "fp16":
            return _half(model)
        case "bf16":
            model = in_opset(model, *_BFLOAT_CONV)
            return _bfloat(_half(model), model)
        case _:
            return model


def _plain_batch_norms(model: ir.Model) -> None:
    """Reduce each batch norm to scale and shift: a variance may be too large for 16 bits."""
    for norm in model.graph:
        parameters = affine(norm) if norm.op_type == "BatchNormalization" else None
        if parameters is None:
            continue
        scale, shift = (array.astype(np.float32) for array in parameters)
        for index, array in enumerate((scale, shift, np.zeros_like(scale), np.ones_like(scale)), start=1):
            set_constant(norm, index, array, "plain")
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    passes.RemoveUnusedNodesPass()(model)


def _tidy_types(model: ir.Model) -> None:
    """Leave out what has a type of its own and does nothing."""
    for node in list(model.graph):
        if node.op_type == "Resize" and len(node.inputs) > 1:
            mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
            if mode != "tf_crop_and_resize":
                node.replace_input_with(1, None)  # the region, of which nothing is read
        elif node.op_type == "Cast" and _target(node) == ir.DataType.UINT8:
            # Pixels that a network takes as bytes; TensorRT has bytes at its input alone.
            bypass(node)
            for value in (value for other in model.graph for value in other.outputs):
                value.type = value.type if value.is_graph_output() else None  # what follows changes
    passes.RemoveUnusedNodesPass()(model)


def _quantise_weights(model: ir.Model) -> None:
    """Let TensorRT quantise the weights itself: float32, and a Q/DQ pair. 8.5 takes them in no other form."""
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        levels, scales = (constant(value) for value in node.inputs[:2])
        if levels is None or scales is None:
            continue
        weight = levels * scales.reshape(-1, *[1] * (levels.ndim - 1))
        tape = ir.tape.Tape()
        wide = initializer(model.graph, f"{node.name}.float32", weight.astype(np.float32))
        narrow = tape.op("QuantizeLinear", [wide, *node.inputs[1:]], {"axis": 0}, name=f"{node.name}.pair")
        model.graph.insert_before(node, tape.nodes)
        node.replace_input_with(0, narrow)
    passes.RemoveUnusedNodesPass()(model)


def _half(model: ir.Model) -> ir.Model:
    """Cast the network to float16 with ONNX Runtime's converter."""
    proto = ir.to_proto(model)
    # The converter would take the declared type of a weight for the one that it has after the conversion.
    weights = {tensor.name for tensor in proto.graph.initializer}
    declared = [value for value in proto.graph.value_info if value.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    converted = convert_float_to_float16(
        proto,
        keep_io_types=True,
        op_block_list=_FLOAT32_OPS,
        node_block_list=[node.name for node in _last_step(model)],
    )
    typed: ir.Model = ir.from_proto(converted)
    typed.graph.sort()  # the converter puts its casts at the end
    _drop_detours(typed)
    # Older converters cast a value again for each node that reads it.
    passes.CommonSubexpressionEliminationPass()(typed)
    return typed


def _last_step(model: ir.Model) -> Iterator[ir.Node]:
    """The division by the length, and what only moves its result."""
    node = model.graph.outputs[0].producer()
    while node is not None:
        yield node
        node = node.inputs[0].producer() if node.op_type in _MOVES and node.inputs[0] is not None else None


def _drop_detours(model: ir.Model) -> None:
    """Drop float32 -> float16 -> float32, which the converter leaves between two float32 nodes."""
    for cast in [node for node in model.graph if node.op_type == "Cast"]:
        narrow = cast.inputs[0].producer() if cast.inputs[0] is not None else None
        if narrow is None or narrow.op_type != "Cast" or _target(cast) != ir.DataType.FLOAT:
            continue
        source = narrow.inputs[0]
        if source is None or source.dtype not in (ir.DataType.FLOAT, None):
            continue  # None: the converter does not declare the type of what it adds
        output = cast.outputs[0]
        if output.is_graph_output():
            # The producer takes over the output's name, which is part of the contract.
            source.name, output.name = output.name, f"{output.name}.detour"
            source.shape = output.shape
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    passes.RemoveUnusedNodesPass()(model)


def _target(cast: ir.Node) -> ir.DataType:
    return ir.DataType(cast.attributes.get_int("to", 0))


def _bfloat(half: ir.Model, exact: ir.Model) -> ir.Model:
    """Turn a float16 graph into a bfloat16 one, with weights rounded from float32 directly."""
    narrow = ir.DataType.BFLOAT16
    for value in half.graph.initializers.values():
        if value.dtype != ir.DataType.FLOAT16 or value.const_value is None:
            continue
        original = exact.graph.initializers[str(value.name)].const_value
        if original is None:
            raise ValueError(f"{value.name} has no weights.")
        value.const_value = ir.tensor(original.numpy().astype(narrow.numpy()), dtype=narrow, name=value.name)
        value.dtype = narrow
    for node in half.graph:
        if node.op_type == "Cast" and _target(node) == ir.DataType.FLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", narrow)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT16:
                output.dtype = narrow
    return half
