from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcface_client.contract import Embeddings
from arcface_client.evaluation.statistics import (
    agreement,
    direction_drifts,
    flips,
    largest_direction_drift,
    norms,
    similarities,
    similarities_of_all_pairs,
)


def rows(count: int, seed: int = 0) -> Embeddings:
    values = np.random.default_rng(seed).standard_normal((count, 512)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def at_drift(left: Embeddings, drift: float) -> Embeddings:
    """Rows at a given 1 - cosine similarity from others."""
    across = rows(len(left), seed=1).astype(np.float64)
    across -= (across * left).sum(axis=1, keepdims=True) * left
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    cosine = 1 - drift
    return np.asarray(cosine * left + np.sqrt(1 - cosine**2) * across, np.float32)


@pytest.mark.parametrize("drift", [2e-6, 0.001, 0.3, 1.0, 1.9])
def test_drift_is_one_minus_cosine_similarity(drift: float) -> None:
    left = rows(20)
    np.testing.assert_allclose(direction_drifts(left, at_drift(left, drift)), drift, rtol=1e-3)


@given(st.floats(0.01, 100))
def test_length_does_not_count_for_drift_but_for_distance(scale: float) -> None:
    left = rows(3)
    assert largest_direction_drift(left, np.asarray(left * scale, np.float32)) < 1e-12
    assert agreement(left, np.asarray(left * scale, np.float32)).l2_max == pytest.approx(
        abs(scale - 1), rel=1e-3, abs=1e-6
    )


def test_the_largest_drift_is_one_crops_while_the_mean_hides_it() -> None:
    left = rows(200)
    right = left.copy()
    right[7] = at_drift(left, 0.3)[7]
    found = agreement(left, right)
    assert found.drift_max == pytest.approx(0.3, rel=1e-4)
    assert found.drift_mean == pytest.approx(0.3 / 200, rel=1e-4)
    assert found.drift_p99 < 1e-3
    assert found.cosine_min == pytest.approx(0.7, rel=1e-4)
    assert found.cosine_p1 > 0.999
    assert found.l2_max == pytest.approx(np.sqrt(2 * 0.3), rel=1e-4)


def test_norms_are_the_rows_lengths() -> None:
    np.testing.assert_allclose(norms(np.asarray(rows(3) * np.float32(2.5))), 2.5, rtol=1e-6)


def test_a_number_that_is_none_makes_a_drift_that_is_none() -> None:
    right = rows(3)
    right[1, 5] = np.nan
    assert np.isnan(largest_direction_drift(rows(3), right))


def test_all_pairs_are_every_two_different_rows() -> None:
    values = rows(4)
    expected = [float(values[i] @ values[j]) for i in range(4) for j in range(i + 1, 4)]
    np.testing.assert_allclose(similarities_of_all_pairs(values), expected, atol=1e-6)
    np.testing.assert_allclose(similarities(values[[0, 1]], values[[1, 1]]), [expected[0], 1], atol=1e-6)


def test_flips_are_pairs_on_different_sides_of_the_threshold() -> None:
    found = flips(np.array([0.1, 0.29, 0.3, 0.5]), np.array([0.1, 0.31, 0.29, 0.9]), 0.3)
    assert (found.count, found.pairs, found.threshold) == (2, 4, 0.3)
