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

from ..contract import Crops
from ..runtimes.base import in_batches
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
        seen: Whether the drift is above the tolerance.
    """

    perturbation: str
    drift_max: float
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
    right = in_batches(baseline.embed, few, batch_size)
    wrong = {
        name: in_batches(baseline.embed, alter(few), batch_size) for name, alter in PERTURBATIONS.items()
    }
    for other in others:
        wrong[f"another model: {other.name}"] = in_batches(other.embed, few, batch_size)
    drifts = {name: largest_drift(right, embeddings) for name, embeddings in wrong.items()}
    return tuple(
        Control(perturbation=name, drift_max=drift, seen=drift > max_drift_cosine)
        for name, drift in drifts.items()
    )
