"""Fold the batch norm in front of a zero-padded convolution into the residual stream, exactly.

``conv(scale * x + shift)`` pads with zeros after the shift, so the shift cannot become a bias: at the border
fewer of the kernel's taps see it. But it can go where there is no border. With ``offset = shift / scale``

    conv(scale * x + shift) = conv(scale * (x + offset)) = conv'(x + offset)

where conv' has its weights times the scale. x is the sum that the residual block before ends with, and
becomes x + offset when a convolution in front of that sum adds the offset with its bias. Whoever else sees
x takes it away again in the same way: a convolution without padding with its own bias, the next sum with that
of the convolution in front of it. So the batch norm, a pass over memory for every block, is gone, and
nothing has come in its place.

It stays in the first block, which sees the output of a PRelu, and where a channel's offset is so large that
few bits would lose the signal in it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .batchnorm import affine, linear, set_linear
from .edit import bypass, constant, sole_consumer

_Vector = npt.NDArray[np.float64]
_Biases = list[tuple[ir.Node, _Vector]]

_LARGEST_OFFSET: Final = 8.0
"""Of a channel's mean from zero behind the batch norm, in its standard deviations: three binary digits."""

_NOTHING: Final = 1e-7
"""A shift beside the layer's largest signal, which float32 does not tell from none: training has switched
the channel off."""


def fold_preactivations(model: ir.Model) -> int:
    """Fold what can be folded, after ``fold_batch_norms``; returns how many batch norms went."""
    folded = 0
    for norm in [node for node in model.graph if node.op_type == "BatchNormalization"]:
        found, layer = _scale_and_offset(norm), _convolution(sole_consumer(norm.outputs[0]))
        if found is None or layer is None:
            continue
        scale, offset = found
        biases = _biases_that_add(offset, norm)
        if biases is None:
            continue
        for convolution, addend in biases:
            weight, bias = _parameters(convolution)
            set_linear(convolution, weight, bias + addend)
        weight, bias = _parameters(layer)
        set_linear(layer, weight * scale.reshape(1, -1, 1, 1), bias)
        bypass(norm)
        folded += 1
    return folded


def _scale_and_offset(norm: ir.Node) -> tuple[_Vector, _Vector] | None:
    """The batch norm as ``scale * (x + offset)``; None if the offset is too large."""
    parameters = affine(norm)
    gamma, beta = (constant(value) for value in norm.inputs[1:3])
    if parameters is None or gamma is None or beta is None:
        return None
    scale, shift = parameters
    gamma, beta = gamma.astype(np.float64), beta.astype(np.float64)
    used = np.abs(shift) > _NOTHING * np.abs(gamma).max()
    if (np.abs(beta) > _LARGEST_OFFSET * np.abs(gamma))[used].any():
        return None
    return scale, np.divide(shift, scale, out=np.zeros_like(shift), where=used)


def _biases_that_add(offset: _Vector, norm: ir.Node) -> _Biases | None:
    """What to add to whose bias so that all see x as before, and this batch norm x + offset.

    None if x comes from, or goes to, somewhere without a bias for that.
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
    # One of a single channel may be spread over all of them by its sum.
    fits = all(_parameters(convolution)[1].shape == addend.shape for convolution, addend in biases)
    return biases if fits else None


def _convolution(node: ir.Node | None) -> ir.Node | None:
    """The node, if it is a convolution of one group with constant parameters."""
    if node is None or node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return None
    parameters = linear(node)
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


def _parameters(convolution: ir.Node) -> tuple[npt.NDArray[np.float64], _Vector]:
    parameters = linear(convolution)
    if parameters is None:
        raise ValueError(f"{convolution.name} has no constant parameters.")
    return parameters
