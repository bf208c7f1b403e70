"""Write a serving graph in the opset that a runtime, or a precision, needs.

TensorRT 8.5 reads opset 17; newer ones read the graph as it is. ONNX's own converter does not go down: it
leaves attributes of the newer opset behind, and has no way for many operators.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.inliner import inline_selected_functions
from onnx_ir.passes import common as passes

from .edit import IR_VERSION, constant, first_line, initializer, parse, set_constant
from .serving import one_crop

CANNOT_CONVERT: Final = (
    onnx.version_converter.ConvertError,
    onnx.shape_inference.InferenceError,
    RuntimeError,  # what ONNX's converter and its shape inference raise besides
)

_ALSO_TAKEN_APART: Final = {"LayerNormalization"}
"""In opset 17, but not in TensorRT 8.5."""


def lowered(graph: bytes, opset: int) -> bytes:
    """Write a graph in an older opset, the same function of the crops; a graph that is in it stays as it is.

    Raises:
        ValueError: An operator cannot be written in it; the message names the operator.
    """
    model = parse(graph)
    if model.graph.opset_imports.get("", 1) <= opset:
        return graph
    model = _without_newer_operators(one_crop(model), opset)
    for node in model.graph:
        _to_older_form(node)
        node.version = None
    passes.RemoveUnusedNodesPass()(model)
    model.graph.opset_imports[""] = opset
    model.ir_version = IR_VERSION
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(first_line(error)) from error
    return bytes(proto.SerializeToString(deterministic=True))


def in_opset(model: ir.Model, opset: int, ir_version: int) -> ir.Model:
    """The model in this opset, or in its own if that is newer; raises one of ``CANNOT_CONVERT``."""
    if (model.opset_imports.get("") or 0) >= opset:
        return model
    proto = ir.to_proto(model)
    proto.ir_version = max(proto.ir_version, 4)  # before that, the converter expects weights among the inputs
    converted: ir.Model = ir.from_proto(onnx.version_converter.convert_version(proto, opset))
    converted.ir_version = max(ir_version, model.ir_version)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(converted)
    return converted


def _without_newer_operators(model: ir.Model, opset: int) -> ir.Model:
    """Take operators that the older opset lacks apart into those that it has, as ONNX defines them."""
    newer = {node.op_type for node in model.graph if not _has(node, opset)}
    newer |= _ALSO_TAKEN_APART & {node.op_type for node in model.graph}
    if not newer:
        return model
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    known = {value.name for value in proto.graph.value_info}
    for tensor in proto.graph.initializer:  # the inliner asks for the types of weights, too
        if tensor.name not in known:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.value_info.append(value)
    names = [("", name) for name in sorted(newer)]
    flat: ir.Model = ir.from_proto(inline_selected_functions(proto, names, inline_schema_functions=True))
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(flat)
    _cast_constants(flat)
    return flat


def _has(node: ir.Node, opset: int) -> bool:
    try:
        onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    return True


def _cast_constants(model: ir.Model) -> None:
    """Compute each CastLike of a constant, an operator that TensorRT 8.5 lacks."""
    for node in [node for node in model.graph if node.op_type == "CastLike"]:
        value, like = constant(node.inputs[0]), node.inputs[1]
        if value is None:
            continue
        kind = ir.DataType.FLOAT if like is None or like.dtype is None else like.dtype
        cast = initializer(model.graph, f"{node.outputs[0].name}.constant", value.astype(kind.numpy()))
        ir.convenience.replace_all_uses_with(node.outputs[0], cast)
        model.graph.remove(node, safe=True)


def _to_older_form(node: ir.Node) -> None:
    """Write a node as opset 17 has it; what that cannot say is left, and the checker names it."""
    match node.op_type:
        case "Split":  # makes equal parts by itself
            node.attributes.pop("num_outputs", None)
        case "Pad":
            _pads_of_all_axes(node)
        case "Resize":
            _drop(node, antialias=0, keep_aspect_ratio_policy="stretch")
        case "Cast":
            _drop(node, saturate=1, round_mode="up")
        case "AveragePool":
            _drop(node, dilations=[1, 1])
        case kind if kind.startswith("Reduce") and kind != "ReduceSum":
            _axes_to_attribute(node)


def _drop(node: ir.Node, **defaults: Any) -> None:
    """Drop attributes that say what the older operator does anyway."""
    for name, default in defaults.items():
        if (attribute := node.attributes.get(name)) is not None and attribute.value == default:
            del node.attributes[name]


def _axes_to_attribute(node: ir.Node) -> None:
    """Reduce operators take their axes as an attribute, and cannot reduce none."""
    reduces_none = node.attributes.pop("noop_with_empty_axes", None)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        if reduces_none is not None and reduces_none.as_int():
            raise ValueError(f"{node.op_type} node {node.name!r} reduces no axis")
        return
    axes = constant(node.inputs[1])
    if axes is None:
        raise ValueError(f"{node.op_type} node {node.name!r} computes its axes")
    node.resize_inputs(1)
    node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())


def _pads_of_all_axes(node: ir.Node) -> None:
    """Pad gives pads for every axis, not for named ones."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return
    data, pads, axes = node.inputs[0], constant(node.inputs[1]), constant(node.inputs[3])
    if data is None or data.shape is None or pads is None or axes is None:
        raise ValueError(f"Pad node {node.name!r} computes its axes or pads")
    rank = len(data.shape)
    every = np.zeros((2, rank), np.int64)
    every[:, axes % rank] = pads.reshape(2, -1)
    node.resize_inputs(3)
    set_constant(node, 1, every.reshape(-1), "all_axes")
