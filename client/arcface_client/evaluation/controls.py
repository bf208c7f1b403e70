"""Negative controls: perturbations that the comparison must be able to show.

A comparison that passes everything proves nothing. So the baseline is also compared with itself under
perturbations, which are mistakes that happen in real pipelines. Another system would not do in its place: one
that makes the mistake itself would take it for right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import numpy.typing as npt

from ..contract import Crops, Embeddings
from ..runtimes.base import Embed, in_batches
from .scores import largest_drift

if TYPE_CHECKING:
    from .systems import System

Number = TypeVar("Number", bound=np.generic)

_CONTROL_ROWS: Final = 32

PERTURBATIONS: Final[Mapping[str, Callable[[Crops], Crops]]] = {
    "red and blue swapped": lambda crops: np.ascontiguousarray(crops[..., ::-1]),
    "pixels normalised twice": lambda crops: np.asarray(crops / 127.5, np.uint8),
    "another image": lambda crops: np.roll(crops, 1, axis=0),
}
"""Each takes and gives crops: uint8 [N, 112, 112, 3], N at least 2.

Division by 128 in place of 127.5 is missing, because it changes a pixel by less than half a step.
"""


def control_rows(rows: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Choose the rows for the controls, of crops or embeddings [N, ...]: at most 32, evenly."""
    return rows[:: -(-len(rows) // _CONTROL_ROWS)]


@dataclass(frozen=True, kw_only=True)
class Control:
    """One negative control.

    Attributes:
        perturbation: What was changed.
        drift_max: Largest drift that it causes.
        required: Whether the comparison must see it.
        seen: Whether the drift is above the tolerance.
    """

    perturbation: str
    drift_max: float
    required: bool
    seen: bool


def run_controls(
    baseline: System,
    others: Sequence[System],
    crops: Crops,
    *,
    batch_size: int,
    max_drift_cosine: float,
) -> tuple[Control, ...]:
    """Compare the baseline with itself under every perturbation, and with models of another source.

    Args:
        baseline: The system that all are compared with.
        others: Models that are known to be of another source.
        crops: uint8 [N, 112, 112, 3], of which ``control_rows`` are used.
        batch_size: Crops in a batch.
        max_drift_cosine: The tolerance.
    """
    few = control_rows(crops)

    def run(embed: Embed, perturbed: Crops = few) -> Embeddings:
        return in_batches(embed, perturbed, batch_size)

    def control(perturbation: str, embeddings: Embeddings, *, required: bool = True) -> Control:
        drift = largest_drift(right, embeddings)
        seen = drift > max_drift_cosine
        return Control(perturbation=perturbation, drift_max=drift, required=required, seen=seen)

    right = run(baseline.embed)
    controls = [control(name, run(baseline.embed, alter(few))) for name, alter in PERTURBATIONS.items()]
    controls += [control(f"another model: {other.name}", run(other.embed)) for other in others]
    normalised = baseline.run_normalised
    if normalised is not None:
        # InsightFace normalises in floats, outside the model, so these can be made exactly.
        controls.append(control("not normalised", run(lambda batch: normalised(batch, 0.0, 1.0))))
        by_128 = run(lambda batch: normalised(batch, 127.5, 128.0))
        controls.append(control("divided by 128, not 127.5", by_128, required=False))
    return tuple(controls)
