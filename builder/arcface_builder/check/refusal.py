"""A refused plan: keep what is needed to find out why, and name the first layer that diverges."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from arcface_client.contract import CROP_SHAPE, INPUT_NAME, OUTPUT_NAME, Crops
from arcface_client.errors import MissingExtraError, require
from arcface_client.models.golden import largest_drift
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..graph.edit import first_line, session

_LAYERS: Final = ("Conv", "PRelu", "Add", "Gemm", "MatMul")
_TYPING: Final = {True: "--strongly-typed", False: "--fp16 --int8"}
_CROPS: Final = 2  # the layers of one crop of an IResNet-100 take 90 MB
_LEAST_LENGTH: Final = 1e-30  # of a layer that is all zeros


def keep_refusal(
    folder: Path,
    *,
    converted: bytes,
    exact: bytes,
    settings: Mapping[str, Any],
    crops: Crops,
    max_drift_cosine: float,
    strongly_typed: bool = True,
) -> str:
    """Keep what a refused plan was made of, and say where it diverges.

    The folder gets ``graph.onnx`` (the converted graph), ``settings.json`` and ``crops.npy``.

    Args:
        folder: Folder for this plan.
        converted: The graph that TensorRT built the plan from, with its precision written into it.
        exact: The same graph in float32, or as a quantised source has it.
        settings: The plan's settings and its accuracy report, as JSON takes them.
        crops: uint8 [N, 112, 112, 3], those with the largest drift first.
        max_drift_cosine: The largest drift that is allowed, of the plan and of each layer.
        strongly_typed: Whether TensorRT typed the network strongly, as it does from version 10 on.

    Returns:
        Sentences for the error message: the folder; the layer, or the command that finds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = folder / "graph.onnx"
    graph.write_bytes(converted)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    np.save(folder / "crops.npy", crops)
    shape = ",".join(map(str, (len(crops[:_CROPS]), *CROP_SHAPE)))
    command = (
        f"polygraphy run {shlex.quote(str(graph))} --onnxrt --trt {_TYPING[strongly_typed]} "
        f"--onnx-outputs mark all --trt-outputs mark all --input-shapes '{INPUT_NAME}:[{shape}]' --fail-fast"
    )
    kept = f"The converted graph, the settings and the worst crops are in {folder}."
    try:
        layer = diverging_layer(converted, exact, crops[:_CROPS], max_drift_cosine)
    except MissingExtraError as error:
        return f"{kept} To compare layer by layer: {error}; then run `{command}`."
    except RUN_ERRORS as error:
        return f"{kept} ONNX Runtime cannot run the converted graph ({first_line(error)}); run `{command}`."
    if layer is None:
        return (
            f"{kept} The converted graph is within the tolerance in ONNX Runtime, so the cause is TensorRT's "
            f"build; compare its layers with `{command}`."
        )
    return f"{kept} The first layer that diverges in the converted graph is {layer}."


def diverging_layer(converted: bytes, float32: bytes, crops: Crops, max_drift_cosine: float) -> str | None:
    """Compare two graphs layer by layer in ONNX Runtime, through Polygraphy.

    The layers of all crops are in memory at once. A layer's drift is half the squared difference, relative to
    the squared length.

    Returns:
        The first layer that diverges with its drift; None if the embeddings are within the tolerance.

    Raises:
        MissingExtraError: Polygraphy is not installed.
    """
    exact, narrow = (onnx.load_model_from_string(graph) for graph in (float32, converted))
    layers = _layers(narrow.graph.node)
    shared = {output: name for output, name in _layers(exact.graph.node).items() if output in layers}
    with _polygraphy("logger").G_LOGGER.verbosity():  # it would log on standard output
        onnx_loader, onnxrt = _polygraphy("backend.onnx"), _polygraphy("backend.onnxrt")

        def runner(model: onnx.ModelProto, name: str) -> Any:
            marked = onnx_loader.ModifyOutputs(model, outputs=[*shared, OUTPUT_NAME])
            return onnxrt.OnnxrtRunner(session(marked().SerializeToString()), name=name)

        (_, (wanted,)), (_, (got,)) = _polygraphy("comparator").Comparator.run(
            [runner(exact, "float32"), runner(narrow, "converted")], data_loader=[{INPUT_NAME: crops}]
        )
    if largest_drift(wanted[OUTPUT_NAME], got[OUTPUT_NAME]) <= max_drift_cosine:
        return None
    for output, name in shared.items():
        drift = _drift(wanted[output], got[output])
        if not drift <= max_drift_cosine:  # so that NaN diverges
            return f"{name} (drift {drift:.2g})"
    return None


def _polygraphy(module: str) -> ModuleType:
    return require(f"polygraphy.{module}", extra="polygraphy", purpose="A layer-by-layer comparison")


def _layers(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """Name of each layer by its output, in the order of the graph."""
    return {node.output[0]: node.name or node.output[0] for node in nodes if node.op_type in _LAYERS}


def _drift(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    exact = wanted.astype(np.float64)  # squares would overflow in float16
    length = max(float(np.linalg.norm(exact)), _LEAST_LENGTH)
    return (float(np.linalg.norm(got - exact)) / length) ** 2 / 2
