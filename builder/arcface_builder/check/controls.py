"""Negative controls: what an accuracy check must refuse, so that each run shows that it can fail."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from arcface_client.contract import Crops, Embeddings
from arcface_client.evaluation.controls import PERTURBATIONS, control_rows
from arcface_client.models.golden import largest_drift
from arcface_client.runtimes.base import Embed, in_batches

from ..graph.edit import constant, first_convolution, set_constant

ANOTHER_MODEL: Final = "another model"
"""Name of the control that embeds the crops with another model."""

_BATCH: Final = 8


def run_controls(
    served: Embed, crops: Crops, reference: Embeddings, *, another: Embed | None = None
) -> dict[str, float]:
    """Measure the drift that each perturbation causes, which must be larger than what is allowed.

    The served ONNX model embeds the perturbed crops, not the plan: a plan that has one of these faults
    would make the check look blind.

    Args:
        served: The served ONNX model.
        crops: uint8 [N, 112, 112, 3]; some of them are used.
        reference: Their reference embeddings, float32 [N, 512].
        another: Another model, for one more control.

    Returns:
        Largest drift by perturbation.
    """
    few, right = control_rows(crops), control_rows(reference)
    wrong = {name: in_batches(served, alter(few), _BATCH) for name, alter in PERTURBATIONS.items()}
    if another is not None:
        wrong[ANOTHER_MODEL] = in_batches(another, few, _BATCH)
    return {name: largest_drift(right, embeddings) for name, embeddings in wrong.items()}


def another_model(serving_graph: bytes) -> bytes:
    """A model that embeds differently: a serving graph with the filters of its first layer reversed."""
    model = ir.from_proto(onnx.load_model_from_string(serving_graph))
    convolution = first_convolution(model)
    weight = constant(convolution.inputs[1])
    if weight is None:
        raise ValueError("The first convolution has no weights.")
    set_constant(convolution, 1, np.ascontiguousarray(weight[::-1]), "another")
    return bytes(ir.to_proto(model).SerializeToString())
