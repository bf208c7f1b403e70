"""Where does a typed graph begin to differ from the float32 one?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from arcface_client.contract import INPUT_NAME, Crops
from arcface_client.runtimes.sessions import RUN_ERRORS

from ..graph import session

_LAYERS: Final = ("Conv", "PRelu", "Add", "Gemm")

USUAL: Final = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 1e-1, "int8": 1e-1}
"""Relative error of a layer's output that is nothing to wonder about, by precision."""

_LEAST_LENGTH: Final = 1e-30  # a layer that gives zeros alone


@dataclass(frozen=True)
class Divergence:
    """A layer and how far its output is from the float32 one.

    Attributes:
        layer: The node's name.
        relative_error: Length of the difference over length of the output.
        usual: What would be nothing to wonder about.
    """

    layer: str
    relative_error: float
    usual: float

    def __str__(self) -> str:
        return (
            f"the first layer that diverges is {self.layer}: "
            f"relative error {self.relative_error:.2g}, usual up to {self.usual:g}"
        )


class NoDivergence(Enum):
    """Why no layer is named."""

    SOUND = "its graph is sound in ONNX Runtime, so TensorRT's build is at fault"
    NOT_RUN = "no layer can be named: ONNX Runtime cannot run its graph"

    def __str__(self) -> str:
        return self.value


def first_divergence(
    reference: bytes, typed: bytes, crops: Crops, precision: str
) -> Divergence | NoDivergence:
    """Run two graphs side by side and name the first layer that differs more than usual.

    Args:
        reference: The graph typed as fp32, with the same foldings.
        typed: The graph under suspicion, with the same nodes.
        crops: A few crops.
        precision: What the graph is typed as.

    Returns:
        The layer; SOUND if none does; NOT_RUN if ONNX Runtime cannot run the typed graph (bf16 on a CPU).
    """
    layers = _layers(typed)
    names = [name for name in _layers(reference) if name in layers]
    try:
        expected, got = (_outputs(graph, names, crops) for graph in (reference, typed))
    except RUN_ERRORS:
        return NoDivergence.NOT_RUN
    for name, want, have in zip(names, expected, got, strict=True):
        error = _relative(want, have)
        if not error <= USUAL[precision]:
            return Divergence(name, error, USUAL[precision])
    return NoDivergence.SOUND


def _layers(graph: bytes) -> dict[str, str]:
    """Output of each layer by its node's name, in order."""
    nodes = onnx.load_model_from_string(graph).graph.node
    return {node.name: node.output[0] for node in nodes if node.op_type in _LAYERS and node.name}


def _outputs(graph: bytes, names: list[str], crops: Crops) -> list[npt.NDArray[Any]]:
    model = ir.from_proto(onnx.load_model_from_string(graph))
    by_name = {node.name: node for node in model.graph}
    model.graph.outputs[:] = [by_name[name].outputs[0] for name in names]
    for output in model.graph.outputs:
        output.shape = None  # whatever was written down of it
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    arrays = session(proto.SerializeToString()).run(None, {INPUT_NAME: crops})
    return [np.asarray(array, np.float64) for array in arrays]


def _relative(want: npt.NDArray[Any], have: npt.NDArray[Any]) -> float:
    length = float(np.linalg.norm(want))
    return float(np.linalg.norm(have - want)) / max(length, _LEAST_LENGTH)
