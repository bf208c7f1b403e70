"""Fold batch norms into the layers beside them, wherever that is exact.

A batch norm in inference is ``scale * x + shift`` for each channel. After a convolution or a Gemm it goes
into that layer's weights and bias, and before a Gemm, through a Flatten too, into the Gemm.

Before a convolution with zero padding that would be wrong: the padding is zero after the shift, so at the
border fewer taps of the kernel see the shift. In a residual network it can go elsewhere. With
``offset = shift / scale``

    conv(scale * x + shift) = conv(scale * (x + offset)) = conv'(x + offset)

where conv' has its weights times the scale. x is the sum at the end of the residual block before; it
becomes x + offset when a convolution in front of that sum adds the offset with its bias. Every other reader
of x takes the offset away again: a convolution without padding with its own bias, the next sum with the
bias of the convolution in front of it. The batch norm, a pass over memory in every block, is gone. It stays
in the first block, which reads the output of a PRelu, and where a channel's offset is so large that a
16-bit type would lose the signal.

Folds are computed in float64 and stored as float32.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .edit import bypass, constant, set_constant, sole_consumer

_Array = npt.NDArray[np.float64]
_Biases = list[tuple[ir.Node, _Array]]

_SUFFIX: Final = "folded"

_LARGEST_OFFSET: Final = 8.0
"""Of a channel's mean behind the batch norm, in its standard deviations: three binary digits."""

_NEGLIGIBLE: Final = 1e-7
"""A shift relative to the layer's largest signal that float32 cannot tell from zero: training has switched
the channel off."""


def fold_batch_norms(model: ir.Model) -> None:
    """Fold batch norms into the linear layer before or behind them."""
    for norm in _batch_norms(model):
        parameters = affine(norm)
        if parameters and (_fold_into_producer(norm, *parameters) or _fold_into_consumer(norm, *parameters)):
            bypass(norm)


def fold_preactivations(model: ir.Model) -> None:
    """Fold batch norms before padded convolutions, after ``fold_batch_norms``."""
    for norm in _batch_norms(model):
        found, layer = _scale_and_offset(norm), _convolution(sole_consumer(norm.outputs[0]))
        if found is None or layer is None:
            continue
        scale, offset = found
        biases = _biases_that_add(offset, norm)
        if biases is None:
            continue
        for convolution, addend in biases:
            weight, bias = _parameters(convolution)
            _set_parameters(convolution, weight, bias + addend)
        weight, bias = _parameters(layer)
        _set_parameters(layer, weight * scale.reshape(1, -1, 1, 1), bias)
        bypass(norm)


def affine(norm: ir.Node) -> tuple[_Array, _Array] | None:
    """Scale and shift of a batch norm; None if its parameters are computed."""
    arrays = [constant(value) for value in norm.inputs[1:5]]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def _batch_norms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "BatchNormalization"]


def _fold_into_producer(norm: ir.Node, scale: _Array, shift: _Array) -> bool:
    value = norm.inputs[0]
    layer = value.producer() if value is not None else None
    if value is None or layer is None or sole_consumer(value) is not norm:
        return False
    parameters = _linear(layer)
    if parameters is None:
        return False
    weight, bias = parameters
    by_output = scale.reshape(-1, *[1] * (weight.ndim - 1))
    _set_parameters(layer, weight * by_output, bias * scale + shift)
    return True


def _fold_into_consumer(norm: ir.Node, scale: _Array, shift: _Array) -> bool:
    layer = sole_consumer(norm.outputs[0])
    if layer is not None and layer.op_type == "Flatten" and layer.attributes.get_int("axis", 1) == 1:
        layer = sole_consumer(layer.outputs[0])
    if layer is None or layer.op_type != "Gemm":
        return False
    parameters = _linear(layer)
    if parameters is None:
        return False
    weight, bias = parameters
    pixels = weight.shape[1] // scale.size  # Flatten puts each channel's pixels side by side
    _set_parameters(layer, weight * np.repeat(scale, pixels), bias + weight @ np.repeat(shift, pixels))
    return True


def _scale_and_offset(norm: ir.Node) -> tuple[_Array, _Array] | None:
    """The batch norm as ``scale * (x + offset)``; None if the offset is too large."""
    parameters = affine(norm)
    if parameters is None:
        return None
    scale, shift = parameters
    gamma, beta = (np.asarray(constant(value), np.float64) for value in norm.inputs[1:3])
    used = np.abs(shift) > _NEGLIGIBLE * np.abs(gamma).max()
    if (np.abs(beta) > _LARGEST_OFFSET * np.abs(gamma))[used].any():
        return None
    return scale, np.divide(shift, scale, out=np.zeros_like(shift), where=used)


def _biases_that_add(offset: _Array, norm: ir.Node) -> _Biases | None:
    """What to add to which bias, so that this batch norm reads x + offset and all others x as before.

    None if x comes from, or goes to, a node that has no bias for that.
    """
    stream = norm.inputs[0]
    if stream is None or stream.is_graph_output():
        return None
    source = _convolution(stream.producer()) or _convolution_into(stream.producer())
    if source is None:
        return None
    biases = [(source, offset)]
    for node in stream.consumers():
        convolution, other = _convolution(node), _convolution_into(node, other_than=stream)
        if convolution is not None and _is_unpadded(convolution):
            biases.append((convolution, -_parameters(convolution)[0].sum(axis=(2, 3)) @ offset))
        elif other is not None:
            biases.append((other, -offset))
        elif node is not norm:
            return None
    # A convolution of one channel may be broadcast over all channels by its sum.
    fits = all(_parameters(convolution)[1].shape == addend.shape for convolution, addend in biases)
    return biases if fits else None


def _convolution(node: ir.Node | None) -> ir.Node | None:
    """The node, if it is a convolution of one group with constant parameters."""
    if node is None or node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return None
    parameters = _linear(node)
    return node if parameters and parameters[0].ndim == 4 else None


def _convolution_into(node: ir.Node | None, other_than: ir.Value | None = None) -> ir.Node | None:
    """A convolution whose output goes into this sum and nowhere else."""
    if node is None or node.op_type != "Add":
        return None
    for value in node.inputs:
        if value is not None and value is not other_than and sole_consumer(value) is node:
            convolution = _convolution(value.producer())
            if convolution is not None:
                return convolution
    return None


def _is_unpadded(convolution: ir.Node) -> bool:
    attributes = convolution.attributes
    return attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        attributes.get_ints("pads", [0])
    )


def _parameters(layer: ir.Node) -> tuple[_Array, _Array]:
    parameters = _linear(layer)
    if parameters is None:
        raise ValueError(f"{layer.name} has no constant parameters.")
    return parameters


def _linear(layer: ir.Node) -> tuple[_Array, _Array] | None:
    """Weight [out, in, ...] and bias [out] of a Conv or a plain Gemm with constant parameters."""
    if layer.op_type not in ("Conv", "Gemm") or layer.domain:
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


def _set_parameters(layer: ir.Node, weight: _Array, bias: _Array) -> None:
    """Give a Conv or a Gemm new parameters, as ``_linear`` returns them."""
    if layer.op_type == "Gemm":
        layer.attributes["transB"] = ir.AttrInt64("transB", 1)
    set_constant(layer, 1, weight.astype(np.float32), _SUFFIX)
    set_constant(layer, 2, bias.astype(np.float32), _SUFFIX)
