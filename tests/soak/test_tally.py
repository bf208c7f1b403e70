"""A soak that cannot fail would be worth nothing."""

from __future__ import annotations

import numpy as np
import pytest

from arcface_client.contract import Embeddings
from arcface_client.errors import ArcFaceError, DeadlineExceededError, NoCandidateNowError, ServerError
from arcface_client.observability.diagnostics import Served, Source
from soak.tally import LATE_S, Tally, wrong_rows

TRUTH: Embeddings = np.eye(4, 512, dtype=np.float32)


def served(crops: int) -> Served:
    return Served((Source("triton", "tiny_trt", 1, "one:1", crops),))


def with_row(row: int, value: Embeddings | float) -> Embeddings:
    embeddings = TRUTH.copy()
    embeddings[row] = value
    return embeddings


@pytest.mark.parametrize(
    ("embeddings", "wrong"),
    [
        (TRUTH, 0),
        (TRUTH[[1, 0, 2, 3]], 2),
        (with_row(2, TRUTH[1]), 1),
        (with_row(2, np.nan), 1),
        (with_row(2, 0.0), 1),
        (with_row(2, 1.01 * TRUTH[2]), 1),
        (TRUTH[:3], 4),
    ],
    ids=["right", "swapped", "doubled", "not a number", "not filled", "too long", "one too few"],
)
def test_embeddings_that_are_not_their_crops_are_counted(embeddings: Embeddings, wrong: int) -> None:
    tally = Tally()
    tally.served(embeddings, TRUTH, served(len(TRUTH)))
    assert tally.wrong == wrong == wrong_rows(embeddings, TRUTH)
    assert tally.passed == (wrong == 0)


def test_a_report_that_accounts_for_other_crops_fails() -> None:
    tally = Tally()
    tally.served(TRUTH, TRUTH, served(3))
    assert not tally.passed


@pytest.mark.parametrize(
    ("error", "took_s", "timeout_s", "has_local", "allowed"),
    [
        (DeadlineExceededError("late"), 1.0, 1.0, True, True),
        (DeadlineExceededError("late"), 0.5, 1.0, False, False),
        (DeadlineExceededError("late"), 60.0, None, False, False),
        (NoCandidateNowError({}), 1.0, None, False, True),
        (NoCandidateNowError({}), 1.0, None, True, False),
        (ServerError("failed"), 1.0, None, False, False),
    ],
)
def test_only_errors_that_the_faults_explain_are_allowed(
    error: ArcFaceError, took_s: float, timeout_s: float | None, has_local: bool, allowed: bool
) -> None:
    tally = Tally()
    tally.served(TRUTH, TRUTH, served(4))
    tally.failed(error, took_s, timeout_s, has_local=has_local)
    assert tally.passed == allowed


def test_a_call_that_goes_on_after_its_deadline_fails() -> None:
    tally = Tally()
    tally.served(TRUTH, TRUTH, served(4))
    tally.ended(1 + 0.9 * LATE_S, 1)
    assert tally.passed
    tally.ended(1 + 1.1 * LATE_S, 1)
    assert not tally.passed


def test_a_soak_in_which_nothing_was_embedded_fails() -> None:
    assert not Tally().passed
