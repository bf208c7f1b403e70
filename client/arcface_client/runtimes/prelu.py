"""PRelu for ONNX Runtime on x86, as convolutions.

ONNX Runtime keeps images in a blocked layout there, for which it has no kernel of PRelu: it changes the
layout before each one and changes it back after. Convolutions of single channels have a kernel. So
``x + (1 - slope) * Relu(-x)``, written with them, is faster although it computes more. Other runtimes fuse
PRelu into the convolution before it, so files keep it.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from onnx import GraphProto, NodeProto, TensorProto, helper, load_model, numpy_helper

from .base import has_avx2

_BLOCK: Final = 16  # channels; 8 without AVX-512


def without_prelu(path: Path) -> bytes | None:
    """Rewrite each PRelu behind a convolution; the results differ by rounding.

    Args:
        path: ONNX file.

    Returns:
        The model; None where there is nothing to rewrite, or where that would not help.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not has_avx2():
        return None
    try:
        model = load_model(path, load_external_data=False)
    except DecodeError:  # ONNX Runtime says why
        return None
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        return None
    producers = {name: node for node in graph.node for name in node.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        slope = _slope_in_blocks(node, producers, constants)
        nodes += [node] if slope is None else _as_convolutions(node, slope, graph)
    if len(nodes) == len(graph.node):
        return None
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _slope_in_blocks(
    node: NodeProto, producers: dict[str, NodeProto], constants: dict[str, TensorProto]
) -> TensorProto | None:
    """The slope of a PRelu whose input is in the blocked layout."""
    if node.op_type != "PRelu" or len(node.input) != 2:
        return None
    before, slope = producers.get(node.input[0]), constants.get(node.input[1])
    if before is None or before.op_type != "Conv" or len(before.input) < 2:
        return None
    if slope is None or slope.data_type != TensorProto.FLOAT:
        return None
    weight = constants.get(before.input[1])
    if weight is None or list(slope.dims) != [weight.dims[0], 1, 1] or weight.dims[0] % _BLOCK:
        return None
    return slope


def _as_convolutions(node: NodeProto, slope: TensorProto, graph: GraphProto) -> list[NodeProto]:
    image, (out,) = node.input[0], node.output
    names = ("minus_one", "negated", "negative_part", "one_minus_slope", "difference")
    minus_one, negated, negative_part, one_minus_slope, difference = (f"{out}/{name}" for name in names)
    factors = 1 - numpy_helper.to_array(slope).reshape(-1, 1, 1, 1)
    graph.initializer.append(numpy_helper.from_array(np.full_like(factors, -1), minus_one))
    graph.initializer.append(numpy_helper.from_array(factors, one_minus_slope))
    return [
        helper.make_node("Conv", [image, minus_one], [negated], group=len(factors)),
        helper.make_node("Relu", [negated], [negative_part]),
        helper.make_node("Conv", [negative_part, one_minus_slope], [difference], group=len(factors)),
        helper.make_node("Add", [image, difference], [out]),
    ]
