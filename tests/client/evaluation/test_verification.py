from __future__ import annotations

import numpy as np
import pytest

from arcface_client.evaluation.statistics import Values
from arcface_client.evaluation.verification import Same, tar_at_far, verify


def labelled(pairs: int = 6000, seed: int = 0) -> tuple[Values, Same]:
    """Similarities as of LFW: runs of 300 true pairs and 300 false ones in turn."""
    random = np.random.default_rng(seed)
    same = np.arange(pairs) // 300 % 2 == 0
    similarity = np.where(same, random.normal(0.6, 0.12, pairs), random.normal(0.05, 0.1, pairs))
    return np.clip(similarity, -1, 1), np.asarray(same)


def plain_accuracy(similarity: Values, same: Same) -> tuple[list[float], list[float]]:
    """InsightFace's verification.py in plain loops: contiguous folds, the first best threshold wins."""
    distance, indices = 2 - 2 * similarity, np.arange(len(same))
    thresholds = np.arange(0, 4, 0.01)
    accuracies, chosen = [], []
    for fold in np.array_split(indices, 10):
        train = np.setdiff1d(indices, fold)
        scores = [np.mean((distance[train] < threshold) == same[train]) for threshold in thresholds]
        best = thresholds[int(np.argmax(scores))]
        accuracies.append(float(np.mean((distance[fold] < best) == same[fold])))
        chosen.append(1 - best / 2)
    return accuracies, chosen


@pytest.mark.parametrize("pairs", [305, 605, 6000])
def test_accuracy_is_that_of_insightfaces_ten_folds(pairs: int) -> None:
    similarity, same = labelled(pairs)
    accuracies, thresholds = plain_accuracy(similarity, same)
    found = verify(similarity, same)
    assert found.accuracy_mean == pytest.approx(np.mean(accuracies))
    assert found.accuracy_std == pytest.approx(np.std(accuracies))
    assert found.threshold == pytest.approx(np.mean(thresholds))


def test_a_threshold_does_not_see_the_fold_that_it_judges() -> None:
    """The tenth fold's false pairs look like true ones: only a threshold that was fitted to it would help."""
    same = np.arange(1000) % 2 == 0
    similarity = np.where(same, 0.6, 0.1)
    similarity[900:] = np.where(same[900:], 0.9, 0.7)
    assert verify(similarity, same).accuracy_mean == pytest.approx(0.95)


def test_fewer_pairs_than_folds_have_no_accuracy() -> None:
    found = verify(np.full(9, 0.5), np.ones(9, bool))
    assert (found.accuracy_mean, found.accuracy_std, found.threshold) == (None, None, None)


def test_tar_at_far_counts_true_pairs_above_the_few_best_false_ones() -> None:
    impostors = np.linspace(0, 0.5, 3000)
    genuine = np.linspace(0.4, 0.9, 1000)
    similarity, same = np.concatenate([genuine, impostors]), np.arange(4000) < 1000
    threshold = impostors[-4]  # above it are 3 of 3,000
    assert tar_at_far(similarity, same, 1e-3) == np.mean(genuine > threshold)
    assert np.mean(impostors > threshold) <= 1e-3


@pytest.mark.parametrize(("impostors", "known"), [(999, False), (1000, True)])
def test_a_rate_needs_as_many_false_pairs(impostors: int, known: bool) -> None:
    same = np.arange(impostors + 10) < 10
    rate = tar_at_far(np.where(same, 0.9, 0.1), same, 1e-3)
    assert rate == (1.0 if known else None)


def test_equal_similarities_are_not_accepted_beyond_the_rate() -> None:
    same = np.arange(2000) < 1000
    assert tar_at_far(np.full(2000, 0.5), same, 1e-3) == 0


def test_without_true_pairs_there_is_no_rate() -> None:
    assert tar_at_far(np.full(2000, 0.5), np.zeros(2000, bool), 1e-3) is None


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_one_kind_alone_give_no_accuracy(same: bool) -> None:
    found = verify(np.full(40, 0.5), np.full(40, same))

    assert (found.accuracy_mean, found.threshold) == (None, None)
