"""Accuracy: how far a model's embeddings are from the reference embeddings of the same crops.

``build`` compares the ONNX model with its source, ``compile`` compares a plan with it; both get an
``AccuracyReport``. The report also holds the negative controls, which show that the check can fail.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from arcface_client.contract import Crops, Embeddings, Progress, no_progress
from arcface_client.evaluation.controls import PERTURBATIONS, control_rows
from arcface_client.models.golden import drifts, largest_drift
from arcface_client.models.plan_manifest import PlanParity, RecognitionLoss
from arcface_client.runtimes.base import Embed, in_batches
from arcface_client.runtimes.onnxruntime import OnnxRuntime

from ..errors import ParityError, ServedModelError
from ..graph.edit import constant, embedder, parse, set_constant
from .crops import comparison_crops, face_like, noise

_log = logging.getLogger(__name__)

TOLERANCE: Final = 1e-5
"""Largest absolute difference that a build allows between two numbers of unit embeddings."""

SERVED_MODEL: Final = "served ONNX model"
"""What computes the reference embeddings where the source model is not available."""

_BUILD_DRIFT: Final = 1e-4
"""Drift that each control of a build should exceed."""

_LAYER: Final = re.compile("Conv|Gemm|MatMul|DequantizeLinear")

_BUILD_BATCHES: Final = (1, 3, 8)
_BATCH: Final = 8
_WORST: Final = 16  # crops that a report names


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """How far a model's embeddings are from the reference embeddings.

    Attributes:
        largest_drift_cosine: Largest 1 - cosine similarity over all crops and batch sizes.
        max_drift_cosine: The largest drift that is allowed. Each control must exceed it.
        max_abs_difference: Largest absolute difference between two numbers of the unit embeddings.
        between_batches: Largest drift between a crop embedded alone and in any place of a larger batch.
        crops: Number of crops.
        batch_sizes: Batch sizes that the model was run with.
        controls: Largest drift that each perturbation causes.
        compared_with: What computed the reference embeddings: "source file", "fixed copy" (the source with
            its issues fixed), or "served ONNX model".
        worst_crops: Indices of the crops with the largest drift, the worst first.
    """

    largest_drift_cosine: float
    max_drift_cosine: float
    max_abs_difference: float
    between_batches: float
    crops: int
    batch_sizes: tuple[int, ...]
    controls: Mapping[str, float]
    compared_with: str
    worst_crops: tuple[int, ...] = ()

    def check(self, model: str = "plan", *, by_task: bool = False) -> None:
        """Refuse a model that drifts, and a check that could not have noticed. NaN never passes.

        Args:
            model: What was compared, for the message.
            by_task: Whether its recognition is judged in place of its drift. The drift then only has to be
                smaller than that of every control.

        Raises:
            ParityError: A drift is larger than allowed, or a control's drift is not.
        """
        allowed = self.largest_drift_cosine if by_task else self.max_drift_cosine
        # Rounding to int8 may differ between batch sizes by more than from the source.
        if not by_task and not self.between_batches <= allowed:
            raise ParityError(
                f"The {model}'s embedding of a crop drifts by {self.between_batches:.2g} with its place in a "
                f"batch; expected at most {allowed:g}."
            )
        if not self.largest_drift_cosine <= allowed:
            raise ParityError(
                f"The {model} drifts by {self.largest_drift_cosine:.2g} from the {self.compared_with}; "
                f"expected at most {allowed:g} (validation.max_drift_cosine)."
            )
        for name, drift in self.controls.items():
            if not drift > allowed:
                raise ParityError(
                    f"The accuracy check is blind: the control '{name}' causes a drift of {drift:.2g}; "
                    f"expected more than {allowed:g}. Pass real face crops with --calibration-dir, and check "
                    "the model's weights."
                )

    def parity(self, task: tuple[RecognitionLoss, ...] = ()) -> PlanParity:
        """The report as the manifest of a plan or of a sibling has it; ``task`` if recognition was judged."""
        record = self.to_record()
        names = ("largest_drift_cosine", "max_drift_cosine", "crops", "compared_with")
        return PlanParity(**{name: record.pop(name) for name in names}, details=record, task=task)

    def to_record(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self) | {"batch_sizes": [*self.batch_sizes], "worst_crops": [*self.worst_crops]}


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceEmbeddings:
    """Crops with the embeddings that a model must give; they are the same for all precisions.

    Attributes:
        crops: uint8 [N, 112, 112, 3].
        embeddings: float32 [N, D], unit rows.
        controls: Largest drift that each perturbation causes in the served ONNX model.
        computed_by: What computed the embeddings, for the report.
        max_drift_cosine: The largest drift that is allowed.
    """

    crops: Crops
    embeddings: Embeddings
    controls: Mapping[str, float]
    computed_by: str
    max_drift_cosine: float

    def compare(self, embed: Embed, batch_sizes: Sequence[int]) -> AccuracyReport:
        """Embed the crops in batches of each size, so that every place of the largest batch is taken."""
        count = len(self.crops)
        places = np.resize(np.arange(count), max(count, *batch_sizes))
        runs = [in_batches(embed, self.crops[places], size) for size in batch_sizes]
        expected = self.embeddings[places]
        by_crop = np.max([drifts(expected, run) for run in runs], axis=0)[:count]  # NaN if one is
        return AccuracyReport(
            largest_drift_cosine=float(np.max([largest_drift(expected, run) for run in runs])),
            max_drift_cosine=self.max_drift_cosine,
            max_abs_difference=float(np.max([np.abs(expected - run).max() for run in runs])),
            between_batches=float(np.max([largest_drift(runs[0], run) for run in runs])),
            crops=count,
            batch_sizes=tuple(batch_sizes),
            controls=self.controls,
            compared_with=self.computed_by,
            worst_crops=tuple(np.argsort(by_crop)[::-1][:_WORST].tolist()),  # NaN comes first
        )


def check_onnx_model(source: Embed, served: Embed, *, computed_by: str = "source file") -> AccuracyReport:
    """Compare a serving graph with its source model, fed as its callers do, on noise and face-like crops.

    Raises:
        ParityError: Two numbers differ by more than ``TOLERANCE``.
    """
    half = max(_BUILD_BATCHES) // 2
    crops = np.concatenate([noise(half, 1), face_like(half, 1)])
    expected = source(crops)
    reference = ReferenceEmbeddings(
        crops=crops,
        embeddings=expected,
        controls=_controls(served, crops, expected),
        computed_by=computed_by,
        max_drift_cosine=_BUILD_DRIFT,
    )
    report = reference.compare(served, _BUILD_BATCHES)
    if not report.max_abs_difference <= TOLERANCE:
        raise ParityError(
            "The serving graph's embeddings differ from the source model's by "
            f"{report.max_abs_difference:.2g}; expected at most {TOLERANCE:g}. Nothing was published; "
            "please report this with the output of `arcface-builder inspect`."
        )
    for name, drift in report.controls.items():
        if not drift > _BUILD_DRIFT:
            _log.warning(
                "The comparison could not have noticed '%s', which makes embeddings drift by %.2g; expected "
                "more than %g. Check the source's normalisation and weights.",
                name,
                drift,
                _BUILD_DRIFT,
            )
    return report


def reference_for_plans(
    model_file: Path,
    source: tuple[Embed, str] | None,
    real_crops: Crops | None,
    *,
    max_drift_cosine: float,
    in_int8: bool = False,
    report: Progress = no_progress,
) -> ReferenceEmbeddings:
    """Compute what the plans of a served ONNX model are compared with, and check the ONNX model itself.

    Args:
        model_file: The served ONNX model.
        source: Its source model and what that runs; without it the served model stands in.
        real_crops: uint8 [N, 112, 112, 3]; generated crops fill them up.
        max_drift_cosine: The largest drift that is allowed.
        in_int8: Whether the plans are in int8, whose ranges hold for faces: no crops are generated.
        report: Called after each batch with the share of the crops that are done.

    Raises:
        ServedModelError: The ONNX model drifts from its source, or embeds perturbed crops alike, so that no
            plan of it can pass.
    """
    crops = comparison_crops(real_crops, in_int8=in_int8)
    total, done = 2 * len(crops) + len(control_rows(crops)) * (len(PERTURBATIONS) + 1), 0

    def counted(embed: Embed, batch: Crops) -> Embeddings:
        nonlocal done
        embeddings = embed(batch)
        done += len(batch)
        report("Computing the reference embeddings", min(1.0, done / total))
        return embeddings

    another = partial(counted, embedder(another_model(model_file.read_bytes())))
    with closing(OnnxRuntime(model_file)) as runtime:
        served = partial(counted, runtime.embed)
        embed, computed_by = (partial(counted, source[0]), source[1]) if source else (served, SERVED_MODEL)
        embeddings = in_batches(embed, crops, _BATCH)
        reference = ReferenceEmbeddings(
            crops=crops,
            embeddings=embeddings,
            controls=_controls(served, crops, embeddings, another=another),
            computed_by=computed_by,
            max_drift_cosine=max_drift_cosine,
        )
        try:
            reference.compare(served, [_BATCH]).check(SERVED_MODEL)
        except ParityError as error:
            raise ServedModelError(f"{error} No plan was built; build the ONNX model again.") from error
    return reference


def _controls(
    served: Embed, crops: Crops, reference: Embeddings, *, another: Embed | None = None
) -> dict[str, float]:
    """Measure the largest drift that each perturbation causes; another model is one more of them.

    The served ONNX model embeds the perturbed crops, not the plan: a plan that has one of these faults
    would make the check look blind.
    """
    few, right = control_rows(crops), control_rows(reference)
    wrong = {name: in_batches(served, alter(few), _BATCH) for name, alter in PERTURBATIONS.items()}
    if another is not None:
        wrong["another model"] = in_batches(another, few, _BATCH)
    return {name: largest_drift(right, embeddings) for name, embeddings in wrong.items()}


def another_model(serving_graph: bytes) -> bytes:
    """A model that embeds differently: a serving graph with the filters of its first layer reversed."""
    model = parse(serving_graph)
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            weight = constant(value) if _LAYER.search(node.op_type) else None
            if weight is not None and weight.ndim > 1:
                set_constant(node, index, np.ascontiguousarray(weight[::-1]), "another")
                return bytes(ir.to_proto(model).SerializeToString())
    raise ServedModelError("The ONNX model has no layer with weights, so that no plan of it can be checked.")
