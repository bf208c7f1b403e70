"""The gate in front of the store: does a plan give the source model's embeddings?

Three points are compared, so that a mistake in preprocessing and a loss of precision can be told apart: the
source model with InsightFace's own preprocessing, the served ONNX model, and the plan. And since a gate
that cannot fail is worthless, it is also shown what must not pass: faults that people really make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.faults import FAULTS, control_rows
from arcface_client.golden import drifts, largest_drift
from arcface_client.limits import DEFAULT_MAX_DRIFT_COSINE
from arcface_client.runtimes.base import Embed, in_batches

from .. import faces
from ..errors import BlindGateError, ParityError, PlanManifestError, ServedModelError
from ..graph import constant, first_convolution, set_constant
from ..store import Parity
from ..store.records import read_record
from .options import SMALL_BATCH

LEAST_CROPS: Final = 256

_ONNX_BATCH: Final = 8

ANOTHER_MODEL: Final = "another model"

_HEADLINES: Final = ("largest_drift_cosine", "max_drift_cosine", "crops", "compared_with")
"""What a manifest says of a verdict outside the details."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate measured; every drift is the largest 1 - cosine similarity.

    Attributes:
        largest_drift_cosine: Between source and plan, over all batch sizes.
        max_drift_cosine: The largest that passes.
        source_to_onnx: Between source and served ONNX model: a fault here is one of preprocessing.
        onnx_to_plan: Between served ONNX model and plan: a fault here is one of precision.
        between_batches: Between a crop alone and the same crop at any place of a larger batch.
        crops: How many crops were compared.
        batch_sizes: The batch sizes that the plan was run with.
        controls: Drift that each fault causes in the served ONNX model, which must be above what passes.
        compared_with: What stood for the source: "source file", "mended copy", or "served ONNX model", where
            the source was not at hand. The served model was held against the source when it was built.
    """

    largest_drift_cosine: float
    max_drift_cosine: float
    source_to_onnx: float
    onnx_to_plan: float
    between_batches: float
    crops: int
    batch_sizes: tuple[int, ...]
    controls: Mapping[str, float]
    compared_with: str

    def check(self) -> None:
        """Refuse what must not be stored; NaN fails every comparison.

        Raises:
            ServedModelError: The served ONNX model's embeddings differ from the source's.
            BlindGateError: A fault that must be seen was not.
            ParityError: The plan's embeddings differ.
        """
        allowed = self.max_drift_cosine
        _check_served(self.source_to_onnx, self.controls, allowed)
        if not self.between_batches <= allowed:
            raise ParityError(
                f"The plan's embedding of a crop drifts by {self.between_batches:.2g} with its place in a "
                f"batch; expected at most {allowed:g}."
            )
        if not self.largest_drift_cosine <= allowed:
            raise ParityError(
                f"The plan drifts by {self.largest_drift_cosine:.2g} from the {self.compared_with}; "
                f"expected at most {allowed:g} (validation.max_drift_cosine)."
            )

    def to_parity(self) -> Parity:
        """Its record in a plan's manifest."""
        details = asdict(self) | {"batch_sizes": list(self.batch_sizes)}  # as JSON has it
        return Parity(**{name: details.pop(name) for name in _HEADLINES}, details=details)


def objection_to(parity: Parity, max_drift_cosine: float) -> str | None:
    """Say what a plan's record has against it by another measure than it was judged by; None if nothing."""
    values = dict(parity.details) | {name: getattr(parity, name) for name in _HEADLINES}
    try:
        verdict = read_record(Verdict, values, "parity")
        if verdict.crops < LEAST_CROPS:
            return f"The plan was judged on too few crops, {verdict.crops}; expected {LEAST_CROPS} or more."
        if missing := sorted({*FAULTS, ANOTHER_MODEL} - verdict.controls.keys()):
            return f"The plan was judged without controls of the gate: {', '.join(missing)}."
        replace(verdict, max_drift_cosine=max_drift_cosine).check()
    except (ParityError, PlanManifestError) as error:
        return str(error)
    return None


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
        _check_served(self.source_to_onnx, self.controls, max_drift_cosine)


def _check_served(source_to_onnx: float, controls: Mapping[str, float], allowed: float) -> None:
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


def judge(
    plan: Embed,
    standard: Standard,
    *,
    max_batch_size: int,
    max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE,
) -> Verdict:
    """Compare a plan with its source.

    Args:
        plan: The plan.
        standard: What it is held against.
        max_batch_size: The plan's largest batch.
        max_drift_cosine: The largest drift that passes.
    """
    count = len(standard.crops)
    # Full batches of each profile, every place of which is taken; a batch that is not full; crops alone.
    sizes = tuple(sorted({1, min(SMALL_BATCH, max_batch_size), (max_batch_size + 1) // 2, max_batch_size}))
    places = np.resize(np.arange(count), max(count, max_batch_size))
    runs = {size: in_batches(plan, standard.crops[places], size) for size in sizes}

    def from_all(expected: Embeddings) -> float:
        return float(np.max([largest_drift(expected, got) for got in runs.values()]))  # NaN if one is

    return Verdict(
        largest_drift_cosine=from_all(standard.from_source[places]),
        max_drift_cosine=max_drift_cosine,
        source_to_onnx=standard.source_to_onnx,
        onnx_to_plan=from_all(standard.from_onnx[places]),
        between_batches=from_all(runs[1]),
        crops=count,
        batch_sizes=sizes,
        controls=standard.controls,
        compared_with=standard.compared_with,
    )


def by_drift(plan: Embed, standard: Standard, batch_sizes: Sequence[int]) -> Crops:
    """The crops that a plan was judged on, those first that it embeds worst."""
    runs = [in_batches(plan, standard.crops, size) for size in batch_sizes]
    worst = np.max([drifts(standard.from_onnx, got) for got in runs], axis=0)
    crops: Crops = standard.crops[np.argsort(worst)[::-1]]  # NaN comes first
    return crops


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
