"""Where does a refused plan's typed graph begin to differ from the float32 one, if that is at fault at all?

Both graphs run in ONNX Runtime here; the plan's own layers are watched where that explains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from arcface_client.contract import INPUT_NAME, OUTPUT_NAME, Crops, Embeddings
from arcface_client.models.golden import drifts
from arcface_client.runtimes.base import in_batches
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..graph.edit import first_line, session
from ..graph.precision import typed_graph
from .layer_errors import USUAL, named_layers, relative_error, worst_layer
from .reference_embeddings import Standard

_LAYERS: Final = ("Conv", "PRelu", "Add", "Gemm")

_BATCH: Final = 8

_NO_MEMORY: Final = "there is no memory to run its graph in ONNX Runtime"

# Of each crop, the layers of an IResNet-100 put out 90 MB in float32, and half of that in float16.
_CROPS_OF_LAYERS: Final = 2


def explain_drift(
    serving_graph: bytes,
    typed: bytes,
    standard: Standard,
    *,
    precision: str,
    max_drift_cosine: float,
    watch: Callable[[], str],
) -> str:
    """Judge the typed graph as its plan was judged; if it drifts, too, name the layer where that begins.

    Args:
        serving_graph: The graph before a precision was written into it.
        typed: The graph of the refused plan.
        standard: What the plan was held against.
        precision: What the graph is typed as.
        max_drift_cosine: The largest drift that passes.
        watch: Says which of the plan's own layers diverges, which takes another build; asked only where the
            graph does not tell: it is sound, TF32 is not in it, or ONNX Runtime lacks an operator (bf16).

    Returns:
        A clause about the graph, and the plan's layers if need be. It says why where nothing can be told.
    """
    if precision == "tf32":
        return f"which TensorRT alone rounds to, {watch()}"
    try:
        by_crop = drifts(standard.from_source, _embed(typed, standard.crops))
    except RUN_ERRORS as error:
        return f"ONNX Runtime cannot run its graph ({first_line(error)}); {watch()}"
    except MemoryError:
        return f"{_NO_MEMORY}; {watch()}"
    if np.max(by_crop) <= max_drift_cosine:
        return f"its graph is sound in ONNX Runtime, so TensorRT's build is at fault: {watch()}"
    most = np.argsort(by_crop)[-_CROPS_OF_LAYERS:]  # NaN comes last
    try:
        errors = _layer_errors(typed_graph(serving_graph, "fp32"), typed, standard.crops[most])
        where = worst_layer(errors, USUAL[precision])
    except RUN_ERRORS as error:  # ONNX Runtime tells most of its own want of memory by these, too
        where = f"no layer can be named: ONNX Runtime cannot run its layers ({first_line(error)})"
    except MemoryError:
        where = f"no layer can be named: {_NO_MEMORY}"
    return f"the graph itself drifts by {np.max(by_crop):.2g} in ONNX Runtime; {where}"


def _embed(graph: bytes, crops: Crops) -> Embeddings:
    loaded = session(graph)
    return in_batches(lambda batch: loaded.run([OUTPUT_NAME], {INPUT_NAME: batch})[0], crops, _BATCH)


def _layer_errors(reference: bytes, typed: bytes, crops: Crops) -> dict[str, float]:
    """The relative error of each layer that both have, in order."""
    layers = named_layers(typed, _LAYERS)
    names = [name for name in named_layers(reference, _LAYERS) if name in layers]
    expected, got = (_outputs(graph, names, crops) for graph in (reference, typed))
    return {name: relative_error(want, have) for name, want, have in zip(names, expected, got, strict=True)}


def _outputs(graph: bytes, names: list[str], crops: Crops) -> list[npt.NDArray[Any]]:
    model = ir.from_proto(onnx.load_model_from_string(graph))
    by_name = {node.name: node for node in model.graph}
    model.graph.outputs[:] = [by_name[name].outputs[0] for name in names]
    for output in model.graph.outputs:
        output.shape = None  # whatever was written down of it
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    arrays: list[npt.NDArray[Any]] = session(proto.SerializeToString()).run(None, {INPUT_NAME: crops})
    return arrays
