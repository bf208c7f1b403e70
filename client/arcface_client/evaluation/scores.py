"""Numbers about embeddings: how far two systems agree, and how well one tells persons apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ..contract import Embeddings
from ..models import golden

FOLDS: Final = 10
FALSE_ACCEPT_RATES: Final = (1e-3, 1e-4)

_SQUARED_DISTANCES: Final = np.arange(0, 4, 0.01)
"""Thresholds tried, as in InsightFace's verification.py; for unit rows this is 2 - 2 * cosine similarity."""

Values = npt.NDArray[np.float64]
"""One number for each crop, or for each pair of crops."""

Same = npt.NDArray[np.bool_]
"""Whether each pair is of one person."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Pairs of crops that only one of two systems takes for the same person.

    Attributes:
        threshold: Cosine similarity from which a pair counts as the same person.
        count: Number of these pairs.
        pairs: Number of all pairs.
    """

    threshold: float
    count: int
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A system's embeddings of the crops against the baseline's.

    Attributes:
        baseline: Name of the baseline.
        other: Name of the other system.
        cosine_min: Least cosine similarity.
        cosine_p1: First percentile of the cosine similarity.
        cosine_mean: Mean cosine similarity.
        drift_max: Largest drift, which is the cosine distance of two embeddings of one crop.
        drift_p99: 99th percentile of the drift.
        drift_mean: Mean drift.
        l2_max: Largest Euclidean distance.
        l2_mean: Mean Euclidean distance.
        flips: Pairs of crops that change sides of the threshold.
    """

    baseline: str
    other: str
    cosine_min: float
    cosine_p1: float
    cosine_mean: float
    drift_max: float
    drift_p99: float
    drift_mean: float
    l2_max: float
    l2_mean: float
    flips: Flips


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How well a system tells persons apart on labelled pairs.

    Attributes:
        accuracy_mean: Share of correct pairs, mean over the folds; each fold is scored at the threshold that
            is best on the other folds. None if there are fewer pairs than folds.
        accuracy_std: Standard deviation over the folds.
        threshold: Mean of the folds' thresholds, as a cosine similarity.
        tar_at_far: For each false accept rate, for example "0.001", the share of genuine pairs accepted at
            the lowest threshold that keeps the rate. None if there are too few impostor pairs.
    """

    accuracy_mean: float | None
    accuracy_std: float | None
    threshold: float | None
    tar_at_far: Mapping[str, float | None]


def drifts(left: Embeddings, right: Embeddings) -> Values:
    """Compute the drift of each row from its direction alone, whatever its length.

    Args:
        left: float32 [N, D].
        right: float32 [N, D].

    Returns:
        float64 [N], from 0 for the same direction to 2 for the opposite one; NaN where a number is NaN.
    """
    return golden.drifts(_unit(left), _unit(right))


def largest_drift(left: Embeddings, right: Embeddings) -> float:
    """Compute the largest of ``drifts``; NaN if one is NaN."""
    return float(drifts(left, right).max())


def agreement(baseline: str, other: str, left: Embeddings, right: Embeddings, flips: Flips) -> Agreement:
    """Compare two systems, by name, from their embeddings of the same crops: float32 [N, D] each."""
    drift, distance = drifts(left, right), np.linalg.norm(left.astype(np.float64) - right, axis=1)
    return Agreement(
        baseline=baseline,
        other=other,
        cosine_min=float(1 - drift.max()),
        cosine_p1=float(1 - np.percentile(drift, 99)),
        cosine_mean=float(1 - drift.mean()),
        drift_max=float(drift.max()),
        drift_p99=float(np.percentile(drift, 99)),
        drift_mean=float(drift.mean()),
        l2_max=float(distance.max()),
        l2_mean=float(distance.mean()),
        flips=flips,
    )


def similarities(first: Embeddings, second: Embeddings) -> Values:
    """Compute the cosine similarity of each row with the same row of ``second``: float64 [N]."""
    return np.asarray(np.einsum("nd,nd->n", _unit(first), _unit(second)))


def similarities_of_all_pairs(embeddings: Embeddings) -> Values:
    """Compute the cosine similarity of every two different rows: float64 [N * (N - 1) / 2]."""
    unit = _unit(embeddings)
    return np.asarray((unit @ unit.T)[np.triu_indices(len(unit), 1)])


def flipped(left: Values, right: Values, threshold: float) -> npt.NDArray[np.bool_]:
    """Tell which pairs are on different sides of a threshold: bool [pairs]."""
    return np.asarray((left >= threshold) != (right >= threshold))


def flips(left: Values, right: Values, threshold: float) -> Flips:
    """Count the pairs that are on different sides of a threshold, from two systems' similarities."""
    changed = flipped(left, right, threshold)
    return Flips(threshold=threshold, count=int(changed.sum()), pairs=len(changed))


def verify(similarity: Values, same: Same) -> Verification:
    """Score a system by its cosine similarities of labelled pairs.

    The scores are without accuracy if there are fewer pairs than folds, or if all pairs have one label.
    """
    rates = {f"{rate:g}": tar_at_far(similarity, same, rate) for rate in FALSE_ACCEPT_RATES}
    decided = decide(similarity, same)
    if decided is None:
        return Verification(accuracy_mean=None, accuracy_std=None, threshold=None, tar_at_far=rates)
    right, thresholds = decided
    accuracies = np.array([fold.mean() for fold in np.array_split(right, FOLDS)])
    return Verification(
        accuracy_mean=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(thresholds.mean()),
        tar_at_far=rates,
    )


def decide(similarity: Values, same: Same) -> tuple[Same, Values] | None:
    """Decide each pair at the threshold that is best on the other folds.

    Returns:
        Which pairs are decided right, bool [pairs], and each fold's threshold, as a cosine similarity. None
        if there are fewer pairs than folds, or if all pairs have one label.
    """
    if len(same) < FOLDS or same.all() or not same.any():
        return None
    correct = (2 - 2 * similarity < _SQUARED_DISTANCES[:, np.newaxis]) == same
    right, thresholds = np.empty(len(same), np.bool_), np.empty(FOLDS)
    # A fold is a run of neighbours, as in InsightFace's sets.
    for index, fold in enumerate(np.array_split(np.arange(len(same)), FOLDS)):
        best = int(np.argmax(correct.sum(axis=1) - correct[:, fold].sum(axis=1)))
        right[fold] = correct[best, fold]
        thresholds[index] = 1 - _SQUARED_DISTANCES[best] / 2
    return right, thresholds


def tar_at_far(similarity: Values, same: Same, false_accept_rate: float) -> float | None:
    """Compute the share of genuine pairs accepted, where at most a share of the impostor pairs is.

    It is None without genuine pairs, or with fewer than 1 / ``false_accept_rate`` impostor pairs.
    """
    accepted = accept(similarity, same, false_accept_rate)
    return None if accepted is None or not len(accepted) else float(np.mean(accepted))


def accept(similarity: Values, same: Same, false_accept_rate: float) -> Same | None:
    """Tell which genuine pairs are accepted where at most a share of the impostor pairs is: bool [genuine].

    It is None with fewer than 1 / ``false_accept_rate`` impostor pairs.
    """
    impostor = np.sort(similarity[~same])[::-1]
    # The product of 1,000 pairs and 0.001 may be 0.999...
    accepted = int(len(impostor) * false_accept_rate + 1e-9)
    return np.asarray(similarity[same] > impostor[accepted]) if accepted else None


def _unit(embeddings: Embeddings) -> Values:
    rows = embeddings.astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
