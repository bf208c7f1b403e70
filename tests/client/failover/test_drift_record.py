"""When the drift of live crops is enough to say that a model is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from arcface_client.backends.drift_record import AMONG, CASES, Case, DriftRecord

CASE: Case = (np.zeros((112, 112, 3), np.uint8), np.zeros(512, np.float32))


def record_of(*drifts: float) -> DriftRecord:
    record = DriftRecord(max_drift=1e-3)
    for drift in drifts:
        record.add(drift, CASE)
    return record


def test_figures_are_those_of_the_crops() -> None:
    figures = record_of(0.0, 1e-6, 5e-4, 2e-3).snapshot()
    assert figures["count"] == 4
    assert figures["mean"] == pytest.approx(2.501e-3 / 4)
    assert figures["max"] == 2e-3
    assert figures["beyond"] == 1
    assert {bound: count for bound, count in figures["histogram"].items() if count} == {
        "1e-07": 1,
        "1e-06": 1,
        "0.001": 1,
        "0.01": 1,
    }


def test_nothing_is_known_at_first() -> None:
    figures = record_of().snapshot()
    assert figures["mean"] is figures["max"] is None


def test_single_crops_prove_nothing() -> None:
    assert record_of(*[0.5] * (CASES - 1), *[0.0] * 100).proof() is None


def test_several_crops_close_together_do_once() -> None:
    record = record_of(0.5, 0.0, 0.25, 0.0, 0.0, 1.5)
    proof = record.proof()
    assert proof is not None
    assert len(proof.cases) == CASES
    assert (proof.among, proof.largest) == (6, 1.5)
    assert record.proof() is None


@pytest.mark.parametrize(("between", "is_proof"), [(AMONG - CASES, True), (AMONG - CASES + 1, False)])
def test_several_crops_far_apart_do_not(between: int, is_proof: bool) -> None:
    record = record_of(0.5, *[0.0] * between, 0.5, 0.5)
    assert (record.proof() is not None) is is_proof
