"""How well embeddings tell same from different persons, on pairs of which it is known. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .statistics import Values

FOLDS: Final = 10
FALSE_ACCEPT_RATES: Final = (1e-3, 1e-4)

_SQUARED_DISTANCES: Final = np.arange(0, 4, 0.01)
"""Thresholds tried, as in InsightFace's verification.py; of unit rows this is 2 - 2 * cosine similarity."""

Same = npt.NDArray[np.bool_]
"""Whether each pair is of one person."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What one embedder reaches on labelled pairs.

    Attributes:
        accuracy_mean: Share of pairs judged rightly, mean over the folds; each fold's threshold is the best
            one of the other folds. None when there are fewer pairs than folds.
        accuracy_std: Its standard deviation over the folds.
        threshold: Mean over the folds of the thresholds, as a cosine similarity.
        tar_at_far: By false accept rate, as "0.001", the share of true pairs accepted at the lowest
            threshold that accepts no larger share of the false ones. None where there are fewer false
            pairs than would make one accepted pair of that rate.
    """

    accuracy_mean: float | None
    accuracy_std: float | None
    threshold: float | None
    tar_at_far: Mapping[str, float | None]


def verify(similarity: Values, same: Same) -> Verification:
    """Judge an embedder by its similarities of labelled pairs.

    Args:
        similarity: Cosine similarity of each pair, float64 [pairs].
        same: Whether it is one person, bool [pairs].

    Returns:
        Without accuracy and threshold where there are fewer pairs than folds, or pairs of one kind alone.
    """
    rates = {f"{rate:g}": tar_at_far(similarity, same, rate) for rate in FALSE_ACCEPT_RATES}
    if len(same) < FOLDS or same.all() or not same.any():
        return Verification(accuracy_mean=None, accuracy_std=None, threshold=None, tar_at_far=rates)
    accuracies, thresholds = _accuracy_of_folds(similarity, same)
    return Verification(
        accuracy_mean=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        threshold=float(np.mean(thresholds)),
        tar_at_far=rates,
    )


def tar_at_far(similarity: Values, same: Same, false_accept_rate: float) -> float | None:
    """Share of true pairs above the lowest threshold at which at most so many false ones are.

    Args:
        similarity: Cosine similarity of each pair, float64 [pairs].
        same: Whether it is one person, bool [pairs].
        false_accept_rate: Share of false pairs that may be accepted.

    Returns:
        None when there are no true pairs, or fewer than 1 / rate false ones.
    """
    genuine, impostor = similarity[same], np.sort(similarity[~same])[::-1]
    # The tolerance is for 1,000 pairs at 0.001, whose product may be 0.999...
    accepted = int(len(impostor) * false_accept_rate + 1e-9)
    if not accepted or not len(genuine):
        return None
    return float(np.mean(genuine > impostor[accepted]))


def _accuracy_of_folds(similarity: Values, same: Same) -> tuple[Values, Values]:
    """Accuracy and cosine threshold of each fold; the folds are runs of neighbours, as in the sets."""
    distance = 2 - 2 * similarity
    right = (distance < _SQUARED_DISTANCES[:, np.newaxis]) == same
    accuracies, thresholds = np.empty(FOLDS), np.empty(FOLDS)
    for index, fold in enumerate(np.array_split(np.arange(len(same)), FOLDS)):
        others = right.sum(axis=1) - right[:, fold].sum(axis=1)
        best = int(np.argmax(others))
        accuracies[index] = right[best, fold].mean()
        thresholds[index] = 1 - _SQUARED_DISTANCES[best] / 2
    return accuracies, thresholds
