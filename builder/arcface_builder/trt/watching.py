"""Where does a plan begin to compute otherwise than its float32 graph, if its own graph is sound?

TensorRT shows no tensor but its outputs. So the plan is built once more with the residual sums among them:
kernels end at these anyhow, so that most of them stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from arcface_client.cli.bars import Tell
from arcface_client.contract import CROP_SHAPE, INPUT_NAME, OUTPUT_NAME, Crops
from arcface_client.errors import DeploymentError
from arcface_client.models.golden import largest_drift
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..check.layer_errors import USUAL_IN_TENSORRT, named_layers, relative_error, worst_layer
from ..graph.edit import first_line, session
from ..graph.precision import typed_graph
from .engine import BuiltPlan, build_plan
from .gpu import Gpu
from .options import BuildOptions

Layers = Callable[[Crops], Mapping[str, npt.NDArray[Any]]]
"""All outputs of a plan by name, for a batch of crops."""

_SUMS: Final = ("Add",)
_LAST: Final = "Gemm"
_IN_PLACE_OF_SUMS: Final = ("Conv",)  # in a network that has none
_PREFIX: Final = "watched."

_CROPS: Final = 64
_EXACT_BATCH: Final = 8  # the float32 graph's crops at a time, whose layers are in memory at once


def watch_plan(
    serving_graph: bytes,
    typed: bytes,
    *,
    gpu: Gpu,
    built: BuiltPlan,
    options: BuildOptions,
    crops: Crops,
    batch_sizes: Sequence[int],
    max_drift_cosine: float,
    report: Tell = lambda stage, done: None,
) -> str:
    """Build a plan once more with its layers in sight, and name the first that diverges.

    Args:
        serving_graph: The graph before a precision was written into it.
        typed: The graph of the plan.
        gpu: Where to build and run it.
        built: The plan; with its timings this build is a short one.
        options: What the plan was built by.
        crops: uint8 [N, 112, 112, 3], those first that drift most; not more are looked at than the largest
            batch holds, or 64.
        batch_sizes: The sizes of batches that the gate ran.
        max_drift_cosine: The largest drift that passes.
        report: Is told the stage and how much is done.

    Returns:
        A clause, which says why where no layer can be named.
    """
    try:
        exact = watched_graph(typed_graph(serving_graph, "fp32"))
        again = build_plan(
            gpu.trt,
            watched_graph(typed),
            replace(options, timing_cache=None, workspace_size_mb=built.workspace_size_mb),
            report=report,
            target_sm=gpu.target_sm,
            free_mb=gpu.free_mb,
            timings=built.timings,
        )
        report("Watching the plan's layers", None)
        few = np.resize(crops, (max(*batch_sizes, _CROPS), *CROP_SHAPE))
        with gpu.outputs(again.plan) as layers:
            return diverging_layer(
                exact,
                layers,
                few,
                batch_sizes=batch_sizes,
                usual=USUAL_IN_TENSORRT[options.precision],
                max_drift_cosine=max_drift_cosine,
            )
    except (DeploymentError, *RUN_ERRORS) as error:  # why the plan is refused is known, and more important
        reason = first_line(error).rstrip(".")
    except MemoryError:
        reason = "there is no memory for them"
    return f"no layer can be named: the plan cannot be built or run with its layers in sight ({reason})"


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
    exact_graph: bytes,
    layers: Layers,
    crops: Crops,
    *,
    batch_sizes: Sequence[int],
    usual: float,
    max_drift_cosine: float,
) -> str:
    """Compare a watched plan with its float32 graph, layer by layer.

    Args:
        exact_graph: The watched graph in float32, which ONNX Runtime runs.
        layers: The watched plan.
        crops: uint8 [N, 112, 112, 3].
        batch_sizes: The sizes of batches to run.
        usual: Relative error of a layer that is nothing to wonder about.
        max_drift_cosine: The largest drift that passes.

    Returns:
        A clause, which says why where no layer can be named.
    """
    exact = session(exact_graph)
    names = [output.name for output in exact.get_outputs()]
    errors, drift = dict.fromkeys(names, 0.0), 0.0
    for size in batch_sizes:
        for batch in _parts(crops, size):
            got = layers(batch)
            for at, part in enumerate(_parts(batch, _EXACT_BATCH)):
                wanted = dict(zip(names, exact.run(names, {INPUT_NAME: part}), strict=True))
                rows = slice(at * _EXACT_BATCH, at * _EXACT_BATCH + len(part))
                # NaN is larger than any number here.
                drift = float(np.maximum(drift, largest_drift(wanted[OUTPUT_NAME], got[OUTPUT_NAME][rows])))
                for name in names:
                    error = relative_error(wanted[name], got[name][rows])
                    errors[name] = float(np.maximum(errors[name], error))
    if drift <= max_drift_cosine:
        return (
            "no layer can be named: with its layers in sight the plan passes, so the fault lies in how "
            "TensorRT merges them"
        )
    del errors[OUTPUT_NAME]
    by_layer = {name.removeprefix(_PREFIX): error for name, error in errors.items()}
    return f"of the {len(by_layer)} layers watched in TensorRT, {worst_layer(by_layer, usual)}"


def _parts(crops: Crops, size: int) -> list[Crops]:
    return [crops[start : start + size] for start in range(0, len(crops), size)]
