"""Drift, agreement, flips and verification, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcface_client.contract import Embeddings
from arcface_client.evaluation.scores import (
    Agreement,
    Flips,
    Same,
    Values,
    agreement,
    flips,
    largest_drift,
    tar_at_far,
    verify,
)


def rows(count: int, seed: int = 0) -> Embeddings:
    values = np.random.default_rng(seed).standard_normal((count, 512)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def at_drift(left: Embeddings, drift: float) -> Embeddings:
    """Rows at a given cosine distance from ``left``."""
    across = rows(len(left), seed=1).astype(np.float64)
    across -= (across * left).sum(axis=1, keepdims=True) * left
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    cosine = 1 - drift
    return np.asarray(cosine * left + np.sqrt(1 - cosine**2) * across, np.float32)


def agree(left: Embeddings, right: Embeddings) -> Agreement:
    return agreement("left", "right", left, right, Flips(threshold=0.3, count=0, pairs=0))


@given(st.floats(0.01, 100))
def test_length_changes_the_euclidean_distance_and_not_the_drift(scale: float) -> None:
    left = rows(3)
    scaled = np.asarray(left * scale, np.float32)
    assert largest_drift(left, scaled) < 1e-12
    assert agree(left, scaled).l2_max == pytest.approx(abs(scale - 1), rel=1e-3, abs=1e-6)


def test_one_crop_that_drifts_is_the_largest_drift_while_the_mean_hides_it() -> None:
    left = rows(200)
    right = left.copy()
    right[7] = at_drift(left, 0.3)[7]
    found = agree(left, right)
    assert found.drift_max == pytest.approx(0.3, rel=1e-4)
    assert found.drift_mean == pytest.approx(0.3 / 200, rel=1e-4)
    assert found.drift_p99 < 1e-3
    assert found.cosine_min == pytest.approx(0.7, rel=1e-4)
    assert found.cosine_p1 > 0.999
    assert found.l2_max == pytest.approx(np.sqrt(2 * 0.3), rel=1e-4)


def test_flips_are_pairs_on_different_sides_of_the_threshold() -> None:
    found = flips(np.array([0.1, 0.29, 0.3, 0.5]), np.array([0.1, 0.31, 0.29, 0.9]), 0.3)
    assert (found.count, found.pairs, found.threshold) == (2, 4, 0.3)


def labelled(pairs: int) -> tuple[Values, Same]:
    """Similarities as of LFW: runs of 300 genuine pairs and 300 impostor pairs in turn."""
    random = np.random.default_rng(0)
    same = np.arange(pairs) // 300 % 2 == 0
    similarity = np.where(same, random.normal(0.6, 0.12, pairs), random.normal(0.05, 0.1, pairs))
    return np.clip(similarity, -1, 1), np.asarray(same)


@pytest.mark.parametrize("pairs", [305, 6000])
def test_accuracy_is_that_of_insightfaces_ten_folds(pairs: int) -> None:
    """InsightFace's verification.py in plain loops: contiguous folds, the first best threshold wins."""
    similarity, same = labelled(pairs)
    distance, candidates = 2 - 2 * similarity, np.arange(0, 4, 0.01)
    accuracies, thresholds = [], []
    for fold in np.array_split(np.arange(pairs), 10):
        train = np.setdiff1d(np.arange(pairs), fold)
        best = candidates[np.argmax([np.mean((distance[train] < c) == same[train]) for c in candidates])]
        accuracies.append(np.mean((distance[fold] < best) == same[fold]))
        thresholds.append(1 - best / 2)
    found = verify(similarity, same)
    assert found.accuracy_mean == pytest.approx(np.mean(accuracies))
    assert found.accuracy_std == pytest.approx(np.std(accuracies))
    assert found.threshold == pytest.approx(np.mean(thresholds))


def test_the_threshold_of_a_fold_comes_from_the_other_folds() -> None:
    """Only a threshold that was fitted to the tenth fold would separate its pairs."""
    same = np.arange(1000) % 2 == 0
    similarity = np.where(same, 0.6, 0.1)
    similarity[900:] = np.where(same[900:], 0.9, 0.7)
    assert verify(similarity, same).accuracy_mean == pytest.approx(0.95)


@pytest.mark.parametrize(
    "same",
    [np.arange(9) % 2 == 0, np.ones(40, bool), np.zeros(40, bool)],
    ids=["fewer pairs than folds", "only genuine pairs", "only impostor pairs"],
)
def test_accuracy_is_unknown_where_folds_cannot_be_scored(same: Same) -> None:
    found = verify(np.full(len(same), 0.5), same)
    assert (found.accuracy_mean, found.accuracy_std, found.threshold) == (None, None, None)


def test_tar_at_far_counts_the_genuine_pairs_above_the_best_impostor_pairs() -> None:
    impostors, genuine = np.linspace(0, 0.5, 3000), np.linspace(0.4, 0.9, 1000)
    similarity, same = np.concatenate([genuine, impostors]), np.arange(4000) < 1000
    threshold = impostors[-4]  # above it are 3 of 3,000
    assert tar_at_far(similarity, same, 1e-3) == np.mean(genuine > threshold)


@pytest.mark.parametrize(
    ("genuine", "impostors", "expected"), [(10, 999, None), (10, 1000, 1.0), (0, 1000, None)]
)
def test_a_false_accept_rate_needs_enough_pairs(genuine: int, impostors: int, expected: float | None) -> None:
    same = np.arange(genuine + impostors) < genuine
    assert tar_at_far(np.where(same, 0.9, 0.1), same, 1e-3) == expected
