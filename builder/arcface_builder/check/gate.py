"""The gate in front of the store: does a plan give the source model's embeddings?

Three points are compared, so that a mistake in preprocessing and a loss of precision can be told apart: the
source model with InsightFace's own preprocessing, the served ONNX model, and the plan. And since a gate
that cannot fail is worthless, the standard that it judges by holds what must not pass: faults that people
really make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np

from arcface_client.contract import Crops, Embeddings
from arcface_client.evaluation.perturbations import FAULTS
from arcface_client.models.golden import drifts, largest_drift
from arcface_client.runtimes.base import Embed, in_batches
from arcface_client.triton.limits import DEFAULT_MAX_DRIFT_COSINE

from ..errors import ParityError, PlanManifestError
from ..store import Parity
from ..store.records import read_record
from ..trt.options import SMALL_BATCH
from .reference_embeddings import ANOTHER_MODEL, LEAST_CROPS, Standard, check_served

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
        check_served(self.source_to_onnx, self.controls, allowed)
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
