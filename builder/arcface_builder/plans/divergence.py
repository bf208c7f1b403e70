"""Where does a refused plan's typed graph begin to differ from the float32 one, if that is at fault at all?

Both graphs run in ONNX Runtime; the plan's own layers cannot be seen.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from arcface_client.contract import INPUT_NAME, OUTPUT_NAME, Crops, Embeddings
from arcface_client.golden import drifts
from arcface_client.runtimes.base import in_batches
from arcface_client.runtimes.sessions import RUN_ERRORS

from ..graph import first_line, session
from .gate import Standard
from .precision import typed_graph

_LAYERS: Final = ("Conv", "PRelu", "Add", "Gemm")

USUAL: Final = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1, "int8": 1e-1}
"""Relative error of a layer's output that is nothing to wonder about, by precision."""

_BATCH: Final = 8

# Of each crop, the layers of an IResNet-100 put out 90 MB in float32, and half of that in float16.
_CROPS_OF_LAYERS: Final = 2

_LEAST_LENGTH: Final = 1e-30  # a layer that gives zeros alone


def explain_drift(
    serving_graph: bytes, typed: bytes, standard: Standard, *, precision: str, max_drift_cosine: float
) -> str:
    """Judge the typed graph as its plan was judged; if it drifts, too, name the layer where that begins.

    Args:
        serving_graph: The graph before a precision was written into it.
        typed: The graph of the refused plan.
        standard: What the plan was held against.
        precision: What the graph is typed as.
        max_drift_cosine: The largest drift that passes.

    Returns:
        A clause about the graph. It says why where nothing can be told: tf32 is not in the graph, and ONNX
        Runtime may lack an operator (bf16 on a CPU) or memory.
    """
    if precision == "tf32":
        return "no layer can be named: its graph is that of fp32, and only TensorRT rounds to TF32"
    clause = ""
    try:
        by_crop = drifts(standard.from_source, _embed(typed, standard.crops))
        if np.max(by_crop) <= max_drift_cosine:
            return "its graph is sound in ONNX Runtime, so TensorRT's build is at fault"
        clause = f"the graph itself drifts by {np.max(by_crop):.2g} in ONNX Runtime; "
        most = np.argsort(by_crop)[-_CROPS_OF_LAYERS:]  # NaN comes last
        errors = _layer_errors(typed_graph(serving_graph, "fp32"), typed, standard.crops[most])
    except RUN_ERRORS as error:  # ONNX Runtime tells most of its own want of memory by these, too
        reason = first_line(error)
        return f"{clause}no layer can be named: ONNX Runtime cannot run its graph ({reason})"
    except MemoryError:
        return f"{clause}no layer can be named: there is no memory to run its graph in ONNX Runtime"
    return clause + _worst(errors, USUAL[precision])


def _worst(errors: dict[str, float], usual: float) -> str:
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


def _embed(graph: bytes, crops: Crops) -> Embeddings:
    loaded = session(graph)
    return in_batches(lambda batch: loaded.run([OUTPUT_NAME], {INPUT_NAME: batch})[0], crops, _BATCH)


def _layer_errors(reference: bytes, typed: bytes, crops: Crops) -> dict[str, float]:
    """Length of the difference over length of the output, for each layer that both have, in order."""
    layers = _layers(typed)
    names = [name for name in _layers(reference) if name in layers]
    expected, got = (_outputs(graph, names, crops) for graph in (reference, typed))
    return {name: _relative(want, have) for name, want, have in zip(names, expected, got, strict=True)}


def _layers(graph: bytes) -> list[str]:
    nodes = onnx.load_model_from_string(graph).graph.node
    return [node.name for node in nodes if node.op_type in _LAYERS and node.name]


def _outputs(graph: bytes, names: list[str], crops: Crops) -> list[npt.NDArray[Any]]:
    model = ir.from_proto(onnx.load_model_from_string(graph))
    by_name = {node.name: node for node in model.graph}
    model.graph.outputs[:] = [by_name[name].outputs[0] for name in names]
    for output in model.graph.outputs:
        output.shape = None  # whatever was written down of it
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    arrays: list[npt.NDArray[Any]] = session(proto.SerializeToString()).run(None, {INPUT_NAME: crops})
    return arrays


def _relative(want: npt.NDArray[Any], have: npt.NDArray[Any]) -> float:
    # In the layers' own types squares would overflow; one layer at a time there is memory for float64.
    exact = want.astype(np.float64)
    return float(np.linalg.norm(have - exact)) / max(float(np.linalg.norm(exact)), _LEAST_LENGTH)
