"""How far two sets of embeddings of the same crops agree. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..contract import Embeddings
from ..models.golden import drifts

Values = npt.NDArray[np.float64]
"""One number for each crop, or for each pair of crops."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two embedders' embeddings of the same crops, compared crop by crop.

    Attributes:
        cosine_min: Least cosine similarity.
        cosine_p1: Its first percentile.
        cosine_mean: Its mean.
        drift_max: Largest drift, which is 1 - cosine similarity: what the verdict looks at.
        drift_p99: Its 99th percentile.
        drift_mean: Its mean.
        l2_max: Largest Euclidean distance.
        l2_mean: Its mean.
    """

    cosine_min: float
    cosine_p1: float
    cosine_mean: float
    drift_max: float
    drift_p99: float
    drift_mean: float
    l2_max: float
    l2_mean: float


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Pairs of crops that one embedder takes for the same person and the other does not.

    Attributes:
        threshold: Cosine similarity from which a pair counts as the same person.
        count: How many pairs change sides.
        pairs: Out of how many.
    """

    threshold: float
    count: int
    pairs: int


def direction_drifts(left: Embeddings, right: Embeddings) -> Values:
    """Drift of each row, whatever its length: ``golden.drifts`` of the rows scaled to length one.

    Args:
        left: float32 [N, 512].
        right: float32 [N, 512].

    Returns:
        float64 [N], 0 for the same direction to 2 for the opposite one.
    """
    return drifts(_unit(left), _unit(right))


def largest_direction_drift(left: Embeddings, right: Embeddings) -> float:
    """The largest of ``direction_drifts``; NaN if one is."""
    return float(direction_drifts(left, right).max())


def norms(embeddings: Embeddings) -> Values:
    """Length of each row."""
    return np.asarray(np.linalg.norm(embeddings.astype(np.float64), axis=1))


def agreement(left: Embeddings, right: Embeddings) -> Agreement:
    """Compare two embedders' embeddings of the same crops: float32 [N, 512] each, N at least 1."""
    drift = direction_drifts(left, right)
    distance = norms(left.astype(np.float64) - right)
    return Agreement(
        cosine_min=float(1 - drift.max()),
        cosine_p1=float(1 - np.percentile(drift, 99)),
        cosine_mean=float(1 - drift.mean()),
        drift_max=float(drift.max()),
        drift_p99=float(np.percentile(drift, 99)),
        drift_mean=float(drift.mean()),
        l2_max=float(distance.max()),
        l2_mean=float(distance.mean()),
    )


def similarities(first: Embeddings, second: Embeddings) -> Values:
    """Cosine similarity of each row of one with the same row of the other: float64 [N]."""
    return np.asarray(np.einsum("nd,nd->n", _unit(first), _unit(second)))


def similarities_of_all_pairs(embeddings: Embeddings) -> Values:
    """Cosine similarity of every two different rows: float64 [N * (N - 1) / 2]."""
    unit = _unit(embeddings)
    return np.asarray((unit @ unit.T)[np.triu_indices(len(unit), 1)])


def flipped(left: Values, right: Values, threshold: float) -> npt.NDArray[np.bool_]:
    """Which pairs change sides of a threshold: bool [pairs], of two embedders' similarities of them."""
    return np.asarray((left >= threshold) != (right >= threshold))


def flips(left: Values, right: Values, threshold: float) -> Flips:
    """Count the pairs that change sides of a threshold."""
    changed = flipped(left, right, threshold)
    return Flips(threshold=threshold, count=int(changed.sum()), pairs=len(changed))


def _unit(embeddings: Embeddings) -> Values:
    rows = embeddings.astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
