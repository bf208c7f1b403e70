"""What plans of an ONNX model are held against: its source model, as far as that is at hand, and itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from arcface_client.contract import CROP_SHAPE, INPUT_NAME, Crops, Embeddings
from arcface_client.errors import ArcFaceError
from arcface_client.evaluation.perturbations import FAULTS, control_rows
from arcface_client.models.golden import largest_drift
from arcface_client.runtimes.base import Embed, in_batches
from arcface_client.runtimes.onnxruntime import OnnxRuntime

from ..errors import BlindGateError, ParityError, ServedModelError
from ..graph.edit import constant, first_convolution, session, set_constant
from ..source.load import Source
from ..source.onnx_version import OnnxVersion
from . import crops as faces
from .reference import ReferenceEmbedder

_log = logging.getLogger(__name__)

LEAST_CROPS: Final = 256
ANOTHER_MODEL: Final = "another model"

_ONNX_BATCH: Final = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Standard:
    """What plans of a model are held against; it is the same for all precisions.

    Attributes:
        crops: uint8 [N, 112, 112, 3].
        from_source: Their embeddings by the source model with its callers' own preprocessing.
        from_onnx: Their embeddings by the served ONNX model.
        controls: Drift that each fault causes in the served ONNX model.
        compared_with: What stands for the source, for the record.
    """

    crops: Crops
    from_source: Embeddings
    from_onnx: Embeddings
    controls: Mapping[str, float]
    compared_with: str

    @property
    def source_to_onnx(self) -> float:
        """Drift between source and served ONNX model."""
        return largest_drift(self.from_source, self.from_onnx)

    def check(self, max_drift_cosine: float) -> None:
        """Refuse a model of which no plan can pass.

        Raises:
            ServedModelError: The served ONNX model's embeddings differ from the source's.
            BlindGateError: A fault that must be seen was not.
        """
        check_served(self.source_to_onnx, self.controls, max_drift_cosine)


def check_served(source_to_onnx: float, controls: Mapping[str, float], allowed: float) -> None:
    """Refuse a served ONNX model that is wrong, or that embeds what is wrong as if it were right.

    Args:
        source_to_onnx: Its drift from its source.
        controls: Drift that each fault causes in it.
        allowed: The largest drift that passes, which each fault must exceed.

    Raises:
        ServedModelError: Its embeddings differ from the source's.
        BlindGateError: A fault that must be seen was not.
    """
    if not source_to_onnx <= allowed:
        raise ServedModelError(
            f"The served ONNX model drifts by {source_to_onnx:.2g} from its source before any "
            f"plan is built; expected at most {allowed:g}. Its preprocessing is at fault: build it again."
        )
    for fault, drift in controls.items():
        if not drift > allowed:
            raise BlindGateError(
                f"The gate is blind: {fault} makes a drift of {drift:.2g}, which {allowed:g} allows. "
                "Give real crops with --calibration-dir; a model that embeds all alike is broken."
            )


def plan_standard(onnx: OnnxVersion, source: Source | None, real_crops: Crops | None) -> Standard:
    """Run the source model and the served one; it takes as long as some hundred crops take on a CPU.

    Args:
        onnx: The served model.
        source: Its source model; None leaves the served one alone.
        real_crops: uint8 [N, 112, 112, 3]; generated ones fill them up.
    """
    another = session(another_model(onnx.content))
    with closing(OnnxRuntime(onnx.path)) as served:
        embed, name = _source(onnx, source, served.embed)
        return standard_of(
            embed,
            served.embed,
            lambda crops: another.run(None, {INPUT_NAME: crops})[0],
            gate_crops(real_crops),
            compared_with=name,
        )


def _source(onnx: OnnxVersion, source: Source | None, served: Embed) -> tuple[Embed, str]:
    """The first of the three points: the source model, or the served one where the source is not at hand."""
    if source is not None:
        try:
            model = source.load()
        except (ArcFaceError, OSError) as error:
            _log.warning("The source model is not at hand (%s); comparing with the ONNX model alone.", error)
        else:
            if model.origin.sha256 == onnx.source_sha256:
                reference = ReferenceEmbedder(model)
                return reference.embed, reference.runs
            _log.warning(
                "%s is not what the ONNX model was built from; comparing with the ONNX model alone.",
                model.origin.name,
            )
    return served, "served ONNX model"


def standard_of(
    source: Embed, served: Embed, another: Embed, crops: Crops, *, compared_with: str = "source file"
) -> Standard:
    """Run what is there before any plan is.

    Args:
        source: The source model with its callers' own preprocessing.
        served: The served ONNX model.
        another: Another model, as a control.
        crops: uint8 [N, 112, 112, 3], N at least ``LEAST_CROPS``.
        compared_with: What the source is, for the record.

    Raises:
        ParityError: There are too few crops.
    """
    if len(crops) < LEAST_CROPS:
        raise ParityError(f"The gate has {len(crops)} crops; expected {LEAST_CROPS} or more.")
    expected, from_onnx = (in_batches(embed, crops, _ONNX_BATCH) for embed in (source, served))
    few, right = control_rows(crops), control_rows(expected)
    # By the served model, so that a plan with one of these faults does not pass for a blind gate.
    faulty = {fault: in_batches(served, alter(few), _ONNX_BATCH) for fault, alter in FAULTS.items()}
    faulty[ANOTHER_MODEL] = in_batches(another, few, _ONNX_BATCH)
    return Standard(
        crops=crops,
        from_source=expected,
        from_onnx=from_onnx,
        controls={fault: largest_drift(right, got) for fault, got in faulty.items()},
        compared_with=compared_with,
    )


def gate_crops(real: Crops | None = None, seed: int = 2) -> Crops:
    """The crops to compare on: real ones, filled up to ``LEAST_CROPS`` with generated ones.

    Args:
        real: uint8 [N, 112, 112, 3], if there are any.
        seed: Seed of the generated ones.
    """
    given = np.empty((0, *CROP_SHAPE), np.uint8) if real is None else real
    missing = max(0, LEAST_CROPS - len(given))
    noises = missing // 8
    return np.concatenate([given, faces.face_like(missing - noises, seed), faces.noise(noises, seed)])


def another_model(serving_graph: bytes) -> bytes:
    """A model that embeds otherwise than a serving graph: its first filters have changed places."""
    model = ir.from_proto(onnx.load_model_from_string(serving_graph))
    convolution = first_convolution(model)
    weight = constant(convolution.inputs[1])
    if weight is None:
        raise ValueError("The first convolution has no weights.")
    set_constant(convolution, 1, np.ascontiguousarray(weight[::-1]), "another")
    return bytes(ir.to_proto(model).SerializeToString())
