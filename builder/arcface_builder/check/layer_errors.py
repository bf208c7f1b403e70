"""How far a layer's output is from what it should be, and which layer to name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

USUAL: Final = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1, "int8": 1e-1}
"""Relative error of a typed graph's layer that is nothing to wonder about, by precision."""

USUAL_IN_TENSORRT: Final = {**USUAL, "tf32": 1e-2, "fp16": 2e-2}
"""The same of a plan's layer; an error r at the last one is a drift of about r * r / 2.

TensorRT 8.5 accumulates in float16: of plans that pass, an IResNet-18's last layer was off by 0.8e-2, an
IResNet-100's, by its drift, by 1.5e-2.
"""

_LEAST_LENGTH: Final = 1e-30  # a layer that gives zeros alone


def named_layers(graph: bytes, kinds: Collection[str]) -> list[str]:
    """Names of the nodes of some kinds, in the order of the graph."""
    nodes = onnx.load_model_from_string(graph).graph.node
    return [node.name for node in nodes if node.op_type in kinds and node.name]


def relative_error(want: npt.NDArray[Any], have: npt.NDArray[Any]) -> float:
    """Length of the difference over length of what is wanted; NaN if anything is."""
    # In the layers' own types squares would overflow; one layer at a time there is memory for float64.
    exact = want.astype(np.float64)
    return float(np.linalg.norm(have - exact)) / max(float(np.linalg.norm(exact)), _LEAST_LENGTH)


def worst_layer(errors: Mapping[str, float], usual: float) -> str:
    """Name the first layer whose error is unusual, or else the one with the largest error.

    Args:
        errors: Relative errors by layer, in the order of the graph.
        usual: The largest that is nothing to wonder about.
    """
    for layer, error in errors.items():
        if not error <= usual:  # so that NaN is unusual
            return (
                f"the first layer that diverges is {layer}: relative error {error:.2g}, usual up to {usual:g}"
            )
    layer = max(errors, key=errors.__getitem__)
    return (
        f"no layer's relative error passes the usual {usual:g}; "
        f"the largest is that of {layer}, {errors[layer]:.2g}"
    )
