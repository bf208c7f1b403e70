"""Where does a plan begin to compute otherwise than its float32 graph, if its own graph is sound?

TensorRT shows no tensor but its outputs. So the plan is built once more with the residual sums among them:
kernels end at these anyhow, so that most of them stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from arcface_client.bars import Tell
from arcface_client.contract import INPUT_NAME, OUTPUT_NAME, Crops
from arcface_client.errors import DeploymentError
from arcface_client.golden import largest_drift

from ..graph import session
from .builder import SMALL_BATCH, BuildOptions, BuiltPlan, build_plan
from .gpu import Gpu
from .layer_errors import USUAL, named_layers, relative_error, worst_layer
from .precision import typed_graph

Layers = Callable[[Crops], Mapping[str, npt.NDArray[Any]]]
"""All outputs of a plan by name, for a batch of crops."""

_SUMS: Final = ("Add",)
_LAST: Final = "Gemm"
_IN_PLACE_OF_SUMS: Final = ("Conv",)  # in a network that has none
_PREFIX: Final = "watched."

_BATCH: Final = 2 * SMALL_BATCH
"""Crops at a time: too many for the profile for few crops, and two batches of it."""


def watch_plan(
    gpu: Gpu,
    serving_graph: bytes,
    typed: bytes,
    built: BuiltPlan,
    options: BuildOptions,
    crops: Crops,
    max_drift_cosine: float,
    report: Tell = lambda stage, done: None,
) -> str:
    """Build a plan once more with its layers in sight, and name the first that diverges.

    Args:
        gpu: Where to build and run it.
        serving_graph: The graph before a precision was written into it.
        typed: The graph of the plan.
        built: The plan; with its timings this build is a short one.
        options: How the plan was built.
        crops: uint8 [N, 112, 112, 3].
        max_drift_cosine: The largest drift that passes.
        report: Is told the stage and how much is done.

    Returns:
        A clause, which says why where no layer can be named.
    """
    exact = watched_graph(typed_graph(serving_graph, "fp32"))
    try:
        again = build_plan(
            gpu.trt,
            watched_graph(typed),
            replace(options, timing_cache=None),
            report=report,
            target_sm=gpu.target_sm,
            free_mb=gpu.free_mb,
            timings=built.timings,
        )
        report("Watching the plan's layers", None)
        with gpu.outputs(again.plan) as layers:
            return diverging_layer(exact, layers, crops, USUAL[options.precision], max_drift_cosine)
    except DeploymentError as error:  # why the plan is refused is known, and more important
        reason = str(error).rstrip(".")
        return f"no layer can be named: it cannot be built with its layers in sight ({reason})"


def watched_graph(typed: bytes) -> bytes:
    """Let a graph put out its residual sums, too, each as float32 whatever it is computed in."""
    kinds = _SUMS if named_layers(typed, _SUMS) else _IN_PLACE_OF_SUMS
    model = ir.from_proto(onnx.load_model_from_string(typed))
    nodes = {node.name: node for node in model.graph}
    for name in named_layers(typed, (*kinds, _LAST)):
        label = f"{_PREFIX}{name}"
        cast = ir.node("Cast", [nodes[name].outputs[0]], {"to": ir.DataType.FLOAT}, name=label)
        cast.outputs[0].name = label
        cast.outputs[0].dtype = ir.DataType.FLOAT
        model.graph.append(cast)
        model.graph.outputs.append(cast.outputs[0])
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    return bytes(proto.SerializeToString(deterministic=True))


def diverging_layer(
    exact_graph: bytes, layers: Layers, crops: Crops, usual: float, max_drift_cosine: float
) -> str:
    """Compare a watched plan with its float32 graph, layer by layer, in both of its profiles.

    Args:
        exact_graph: The watched graph in float32, which ONNX Runtime runs.
        layers: The watched plan.
        crops: uint8 [N, 112, 112, 3].
        usual: Relative error of a layer that is nothing to wonder about.
        max_drift_cosine: The largest drift that passes.

    Returns:
        A clause, which says why where no layer can be named.
    """
    exact = session(exact_graph)
    names = [output.name for output in exact.get_outputs()]
    errors, drift = dict.fromkeys(names, 0.0), 0.0
    for start in range(0, len(crops), _BATCH):
        batch = crops[start : start + _BATCH]
        wanted = dict(zip(names, exact.run(names, {INPUT_NAME: batch}), strict=True))
        for size in (_BATCH, SMALL_BATCH):
            got = _in_batches(layers, batch, size)
            drift = float(np.maximum(drift, largest_drift(wanted[OUTPUT_NAME], got[OUTPUT_NAME])))
            for name in names:
                # Of the largest, NaN is larger.
                errors[name] = float(np.maximum(errors[name], relative_error(wanted[name], got[name])))
    if drift <= max_drift_cosine:
        return (
            "no layer can be named: with its layers in sight the plan passes, so the fault lies in how "
            "TensorRT merges them"
        )
    del errors[OUTPUT_NAME]
    by_layer = {name.removeprefix(_PREFIX): error for name, error in errors.items()}
    return f"of the {len(by_layer)} layers watched in TensorRT, {worst_layer(by_layer, usual)}"


def _in_batches(layers: Layers, crops: Crops, size: int) -> Mapping[str, npt.NDArray[Any]]:
    parts = [layers(crops[start : start + size]) for start in range(0, len(crops), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
