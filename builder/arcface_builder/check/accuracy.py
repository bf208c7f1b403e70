"""Prove that a serving graph gives its source model's embeddings, before anyone can be served by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from arcface_client.contract import Embeddings
from arcface_client.evaluation.perturbations import FAULTS
from arcface_client.models.golden import largest_drift
from arcface_client.runtimes.base import Embed, in_batches

from ..errors import ParityError
from . import crops as faces

TOLERANCE: Final = 1e-5
"""Largest absolute difference allowed between two unit embeddings' numbers."""

CONTROL: Final = 1e-3
"""Least difference that each of ``faults.FAULTS`` must make; below it the check would be blind."""

BATCH_SIZES: Final = (1, 3, 8)


@dataclass(frozen=True)
class Parity:
    """What a parity check measured.

    Attributes:
        max_abs_difference: Largest difference between two numbers of the unit embeddings.
        largest_drift_cosine: Largest 1 - cosine similarity.
        controls: The same for each fault that people make, which must be large.
        crops: Number of crops compared, half of them noise and half face-like.
        batch_sizes: Batch sizes that the serving graph was run with.
    """

    max_abs_difference: float
    largest_drift_cosine: float
    controls: Mapping[str, float]
    crops: int
    batch_sizes: tuple[int, ...]


def check_parity(reference: Embed, serving: Embed, *, seed: int = 1) -> Parity:
    """Compare two ways of embedding on noise and face-like crops.

    Raises:
        ParityError: They differ by more than ``TOLERANCE``, or the check cannot tell colours apart.
    """
    half = max(BATCH_SIZES) // 2
    crops = np.concatenate([faces.noise(half, seed), faces.face_like(half, seed)])
    expected = reference(crops)
    runs = [in_batches(serving, crops, size) for size in BATCH_SIZES]
    parity = Parity(
        max_abs_difference=max(_difference(expected, run) for run in runs),
        largest_drift_cosine=max(largest_drift(expected, run) for run in runs),
        controls={fault: _difference(expected, serving(alter(crops))) for fault, alter in FAULTS.items()},
        crops=len(crops),
        batch_sizes=BATCH_SIZES,
    )
    # Written so that NaN fails as well.
    if not parity.max_abs_difference <= TOLERANCE:
        raise ParityError(
            f"The serving graph's embeddings differ from the source model's by "
            f"{parity.max_abs_difference:.2g}; expected at most {TOLERANCE:g}. Nothing was published; "
            "please report this with the output of `arcface-builder inspect`."
        )
    for fault, difference in parity.controls.items():
        if not difference >= CONTROL:
            raise ParityError(
                f"The comparison is blind: with {fault} the embeddings change by only {difference:.2g}; "
                f"expected at least {CONTROL:g}. Such a model is no ArcFace; check its weights."
            )
    return parity


def _difference(left: Embeddings, right: Embeddings) -> float:
    return float(np.abs(left - right).max())
