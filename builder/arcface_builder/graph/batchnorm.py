"""Fold batch norms into the linear layers beside them, wherever that is exact.

A batch norm in inference is ``scale * x + shift`` for each channel. After a convolution or a Gemm it
goes into that layer's weights and bias. Before a Gemm, through a Flatten too, it goes into the Gemm.
Before a convolution with zero padding that alone would be wrong, since the padding is zero after the
shift, not before: see ``preactivation``.
The arithmetic of each fold is in float64; the layer keeps the result as float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .edit import bypass, constant, set_constant, sole_consumer

_Vector = npt.NDArray[np.float64]
_SUFFIX = "folded"


def fold_batch_norms(model: ir.Model) -> int:
    """Fold what can be folded; returns how many batch norms went."""
    folded = 0
    for node in [node for node in model.graph if node.op_type == "BatchNormalization"]:
        parameters = affine(node)
        if parameters and (_fold_into_producer(node, *parameters) or _fold_into_consumer(node, *parameters)):
            bypass(node)
            folded += 1
    return folded


def affine(node: ir.Node) -> tuple[_Vector, _Vector] | None:
    """Scale and shift of a batch norm; None if its parameters are computed."""
    arrays = [constant(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def _fold_into_producer(norm: ir.Node, scale: _Vector, shift: _Vector) -> bool:
    value = norm.inputs[0]
    layer = value.producer() if value is not None else None
    if value is None or layer is None or sole_consumer(value) is not norm:
        return False
    parameters = linear(layer)
    if parameters is None:
        return False
    weight, bias = parameters
    by_output = scale.reshape(-1, *[1] * (weight.ndim - 1))
    set_linear(layer, weight * by_output, bias * scale + shift)
    return True


def _fold_into_consumer(norm: ir.Node, scale: _Vector, shift: _Vector) -> bool:
    layer = sole_consumer(norm.outputs[0])
    if layer is not None and layer.op_type == "Flatten" and layer.attributes.get_int("axis", 1) == 1:
        layer = sole_consumer(layer.outputs[0])
    if layer is None or layer.op_type != "Gemm":
        return False
    parameters = linear(layer)
    if parameters is None:
        return False
    weight, bias = parameters
    pixels = weight.shape[1] // scale.size  # Flatten puts each channel's pixels side by side
    set_linear(layer, weight * np.repeat(scale, pixels), bias + weight @ np.repeat(shift, pixels))
    return True


def linear(layer: ir.Node) -> tuple[npt.NDArray[np.float64], _Vector] | None:
    """Weight [out, in, ...] and bias [out] of a Conv or a plain Gemm with constant parameters."""
    if layer.op_type not in ("Conv", "Gemm"):
        return None
    weight, bias = (constant(value) for value in (*layer.inputs[1:3], None)[:2])
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None
    if weight is None or (has_bias and bias is None):
        return None
    if layer.op_type == "Gemm":
        attributes = layer.attributes
        scaled = attributes.get_float("alpha", 1.0) != 1 or attributes.get_float("beta", 1.0) != 1
        if scaled or attributes.get_int("transA", 0) != 0:
            return None
        if attributes.get_int("transB", 0) == 0:
            weight = weight.T
    outputs = weight.shape[0]
    bias = np.zeros(outputs) if bias is None else np.broadcast_to(bias.reshape(-1), (outputs,))
    return weight.astype(np.float64), bias.astype(np.float64)


def set_linear(layer: ir.Node, weight: npt.NDArray[np.float64], bias: _Vector) -> None:
    """Give a Conv or a Gemm new parameters, as ``linear`` returns them."""
    if layer.op_type == "Gemm":
        layer.attributes["transB"] = ir.AttrInt64("transB", 1)
    set_constant(layer, 1, weight.astype(np.float32), _SUFFIX)
    set_constant(layer, 2, bias.astype(np.float32), _SUFFIX)
