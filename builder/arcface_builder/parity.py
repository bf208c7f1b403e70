"""Prove that a serving graph gives its source model's embeddings, before anyone can be served by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from arcface_client.contract import Crops, Embeddings
from arcface_client.golden import largest_drift

from . import faces
from .errors import ParityError

TOLERANCE: Final = 1e-5
"""Largest absolute difference allowed between two unit embeddings' numbers."""

CONTROL: Final = 1e-3
"""Least difference that swapped colour channels must make; below it the check would be blind."""

BATCH_SIZES: Final = (1, 3, 8)

Embed = Callable[[Crops], Embeddings]
"""Unit embeddings, float32 [N, 512], of BGR crops."""


@dataclass(frozen=True)
class Parity:
    """What a parity check measured.

    Attributes:
        max_abs_difference: Largest difference between two numbers of the unit embeddings.
        max_drift_cosine: Largest 1 - cosine similarity.
        control_difference: The same for crops with red and blue swapped, which must be large.
        crops: Number of crops compared, half of them noise and half face-like.
        batch_sizes: Batch sizes that the serving graph was run with.
    """

    max_abs_difference: float
    max_drift_cosine: float
    control_difference: float
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
    swapped = serving(np.ascontiguousarray(crops[..., ::-1]))
    parity = Parity(
        max_abs_difference=max(_difference(expected, run) for run in runs),
        max_drift_cosine=max(largest_drift(expected, run) for run in runs),
        control_difference=_difference(expected, swapped),
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
    if not parity.control_difference >= CONTROL:
        raise ParityError(
            f"Swapping red and blue changes the embeddings by only {parity.control_difference:.2g}; "
            f"expected at least {CONTROL:g}. A model blind to colour is no ArcFace; check its weights."
        )
    return parity


def in_batches(embed: Embed, crops: Crops, size: int) -> Embeddings:
    """Embed crops in batches of a size; the last one may be smaller."""
    batches = [embed(crops[start : start + size]) for start in range(0, len(crops), size)]
    return np.concatenate(batches)


def _difference(left: Embeddings, right: Embeddings) -> float:
    return float(np.abs(left - right).max())
