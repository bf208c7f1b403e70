"""Negative controls: faults that people really make, each of which the comparison must be able to see.

A comparison that passes everything proves nothing. So the baseline is also compared with itself under
each fault; where the drift stays within the tolerance, the crops, or the model, cannot show that fault.
The baseline, and not what is compared with it: a model that has the fault would take it for right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..contract import Crops, Embeddings
from ..runtimes.base import in_batches
from .embedders import Embedder
from .perturbations import FAULTS, control_rows
from .reference import Reference
from .statistics import largest_direction_drift


@dataclass(frozen=True, kw_only=True)
class Control:
    """One fault.

    Attributes:
        fault: What was done wrong.
        drift_max: Largest drift that it makes.
        required: Whether the comparison must see it. Dividing by 128 in place of 127.5 changes a byte by
            half at most, which no tolerance of this kind can be asked to see.
        seen: Whether the drift is above the tolerance.
    """

    fault: str
    drift_max: float
    required: bool
    seen: bool


def run_controls(
    baseline: Embedder,
    others: Sequence[Embedder],
    crops: Crops,
    *,
    batch_size: int,
    max_drift_cosine: float,
) -> tuple[Control, ...]:
    """Compare the baseline with itself under every fault, and with other models.

    Args:
        baseline: What everything is compared with.
        others: Models that are known to be of another source.
        crops: uint8 [N, 112, 112, 3], of which ``control_rows`` are used.
        batch_size: Crops in a batch.
        max_drift_cosine: The largest drift that passes.
    """
    few = control_rows(crops)

    def run(embed: Callable[[Crops], Embeddings], altered: Crops = few) -> Embeddings:
        return in_batches(embed, altered, batch_size)

    def control(fault: str, wrong: Embeddings, *, required: bool = True) -> Control:
        drift = largest_direction_drift(right, wrong)
        return Control(fault=fault, drift_max=drift, required=required, seen=drift > max_drift_cosine)

    right = run(baseline.embed)
    controls = [control(fault, run(baseline.embed, alter(few))) for fault, alter in FAULTS.items()]
    controls += [control(f"another model: {other.name}", run(other.embed)) for other in others]
    if isinstance(baseline, Reference) and baseline.normalises:
        # InsightFace normalises in floats, outside the model, so these faults can be made exactly.
        raw = run(lambda batch: baseline.embed_with(batch, mean=0.0, std=1.0))
        controls.append(control("not normalised", raw))
        divided = run(lambda batch: baseline.embed_with(batch, mean=127.5, std=128.0))
        controls.append(control("divided by 128, not 127.5", divided, required=False))
    return tuple(controls)
