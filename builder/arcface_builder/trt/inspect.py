"""The precisions that a plan's layers really run in, as TensorRT's engine inspector reports them.

The inspector's JSON changed its keys over the versions: 8.5 gives ``"Weights": {"Type": "Half"}`` for a
convolution and, with dynamic shapes, "N/A" for its tensors' ``Format/Datatype``; later versions keep format
and data type apart. So this module looks for words, not for keys.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from arcface_client.contract import CROP_SHAPE, INPUT_NAME

from ..errors import CompileError, PrecisionError

_WORDS: Final[Mapping[str, re.Pattern[str]]] = {
    "bf16": re.compile(r"bf16|bfloat16|bfloat", re.IGNORECASE),
    "fp16": re.compile(r"fp16|float16|half", re.IGNORECASE),
    "int8": re.compile(r"(?<!u)int8", re.IGNORECASE),
    "fp32": re.compile(r"fp32|float32|\bfloat\b", re.IGNORECASE),
}
"""How the inspector writes each type; "bfloat16" holds "float16", so the order counts."""

_PROFILE: Final = re.compile(r"\[profile (\d+)\]")
"""How 8.5 marks the layers of every optimisation profile but the first."""

_FIRST_PROFILE: Final = "0"

_TYPE_KEY: Final = re.compile(r"format|data_?type", re.IGNORECASE)

_EXPECTED: Final = {
    "fp32": "fp32",
    "tf32": "fp32",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "mixed": "int8",
}
"""The type of the convolutions in a plan of each precision, of some in a mixed one.

TF32 numbers are float32 in memory: the inspector cannot tell tf32 from fp32. So ``check_gpu_has`` refuses it
where the GPU has none.
"""


_SHARES: Final = {"fp32": "all", "tf32": "all", "mixed": "some"}


@dataclass(frozen=True)
class LayerPrecisions:
    """How many layers, and how many convolutions among them, run in each type that the inspector names."""

    layers: Mapping[str, int]
    convolutions: Mapping[str, int]


def inspect_engine(trt: ModuleType, engine: Any) -> tuple[LayerPrecisions, ...]:
    """Ask a deserialised engine, on its GPU; it was built with detailed profiling verbosity.

    Returns:
        One for each optimisation profile that the inspector lists.

    Raises:
        CompileError: Too little GPU memory for an execution context.
    """
    # In its first optimisation profile the context lists all of them, in any other none (8.5).
    context = engine.create_execution_context()
    if context is None:
        raise CompileError("TensorRT has no memory to inspect the plan; free memory on the GPU.")
    # Without shapes the inspector reports "N/A due to dynamic shapes" for every tensor; 8.5 does so anyway.
    largest = engine.get_tensor_profile_shape(INPUT_NAME, 0)[2][0]
    context.set_input_shape(INPUT_NAME, (largest, *CROP_SHAPE))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return layer_precisions(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def layer_precisions(inspector_json: str) -> tuple[LayerPrecisions, ...]:
    """Count the layers of each type in the inspector's report, for each optimisation profile.

    Raises:
        CompileError: The report has no layers.
    """
    try:
        layers = json.loads(inspector_json)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise CompileError(f"TensorRT's inspector reports no layers: {inspector_json[:80]!r}") from error
    # Built without detailed verbosity, a layer is its name alone.
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    profiles: dict[str, list[tuple[Mapping[str, Any], str]]] = {_FIRST_PROFILE: []}
    for layer in detailed:
        profile = _PROFILE.search(str(layer.get("Name", "")))
        if kind := _type_of(layer):
            profiles.setdefault(profile[1] if profile else _FIRST_PROFILE, []).append((layer, kind))
    return tuple(
        LayerPrecisions(
            dict(Counter(kind for _, kind in told)),
            dict(Counter(kind for layer, kind in told if _is_convolution(layer))),
        )
        for told in profiles.values()
    )


def check_precision(found: LayerPrecisions, precision: str) -> None:
    """Check that a plan runs in the precision that it is named after.

    Raises:
        PrecisionError: Most of its convolutions (without any: of its layers) run in another, or any of an
            fp32 plan does.
    """
    expected = _EXPECTED[precision]
    judged = found.convolutions or found.layers  # a network may have none
    total, right = sum(judged.values()), judged.get(expected, 0)
    needed = total if expected == "fp32" else 1 if precision == "mixed" else total // 2 + 1
    if not total:
        raise PrecisionError(
            f"TensorRT's inspector lists no layer with a type in the plan named {precision}: its precision "
            "is unknown. It was not stored; please report this with TensorRT's version."
        )
    if right < needed:
        counts = ", ".join(f"{count} in {kind}" for kind, count in sorted(judged.items()))
        kinds = "convolutions" if found.convolutions else "layers"
        raise PrecisionError(
            f"The plan named {precision} runs its {kinds} in other precisions: {counts}; "
            f"expected {_SHARES.get(precision, 'most')} in {expected}. It was not stored; "
            "does this GPU have that precision?"
        )


def _is_convolution(layer: Mapping[str, Any]) -> bool:
    kinds = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"
    return "conv" in kinds.lower()


def _type_of(layer: Mapping[str, Any]) -> str | None:
    """The type that a layer computes in: that of its weights, else of its first input."""
    weights = layer.get("Weights")
    texts = [str(weights.get("Type", ""))] if isinstance(weights, dict) else []
    for tensor in layer.get("Inputs") or []:
        if isinstance(tensor, dict):
            texts += [str(value) for key, value in tensor.items() if _TYPE_KEY.search(key)]
    return next((kind for text in texts for kind, word in _WORDS.items() if word.search(text)), None)
