from __future__ import annotations

import numpy as np
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.errors import OptionError, PrecisionError
from arcface_builder.graph.mixed import calibration_halves, quantised_graph
from arcface_client.contract import Crops
from arcface_client.models.golden import golden_crops, largest_drift
from support.embedders import embed

CROPS = faces.face_like(40, seed=9)


@pytest.fixture(scope="module")
def drift_of_int8(small_graph: bytes) -> float:
    everything = quantised_graph(small_graph, "int8", CROPS, max_drift_cosine=1)
    return largest_drift(embed(everything.content, CROPS[20:]), embed(small_graph, CROPS[20:]))


def test_mixed_precision_has_as_many_convolutions_in_int8_as_keep_within_the_tolerance(
    small_graph: bytes, drift_of_int8: float
) -> None:
    shares = []
    for part in (0.3, 0.8, 3):
        allowed = part * drift_of_int8
        graph = quantised_graph(small_graph, "mixed", CROPS, max_drift_cosine=allowed)
        for crops in (CROPS[20:], golden_crops()):  # half of the crops do not calibrate
            assert largest_drift(embed(graph.content, crops), embed(small_graph, crops)) <= 0.7 * allowed
        shares.append(graph.share)

    assert 0 < shares[0] < shares[1] < shares[2] == 1


def test_a_tolerance_that_no_convolution_keeps_within_is_one_sentence(small_graph: bytes) -> None:
    with pytest.raises(
        PrecisionError,
        match=r"^No convolution can be in int8 within 70% of .* use another precision, or .*\.$",
    ):
        quantised_graph(small_graph, "mixed", CROPS, max_drift_cosine=1e-9)


def test_the_first_half_of_the_crops_calibrates_and_the_other_one_judges() -> None:
    calibration, held_out = calibration_halves(CROPS)

    np.testing.assert_array_equal(np.concatenate([calibration, held_out]), CROPS)
    assert len(calibration) == len(held_out)


@pytest.mark.parametrize("crops", [None, CROPS[:0], CROPS[:31]], ids=["none", "empty", "few"])
def test_too_few_crops_are_one_sentence(crops: Crops | None, small_graph: bytes) -> None:
    with pytest.raises(OptionError, match=r"int8 needs real face crops .* --calibration-dir \(at least 32"):
        quantised_graph(small_graph, "int8", crops, max_drift_cosine=1)


@pytest.mark.parametrize(
    ("crops", "warning"),
    [
        (np.repeat(CROPS[..., :1], 3, axis=-1), "20 of 20 calibration crops are grey"),
        (np.repeat(CROPS[:1], 40, axis=0), "look like one person (mean similarity 1.00)"),
        (CROPS, "Only 20 crops calibrate int8, half of those given"),
    ],
    ids=["grey", "one person", "few"],
)
def test_crops_that_calibrate_badly_are_said_to(
    crops: Crops, warning: str, small_graph: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    quantised_graph(small_graph, "int8", crops, max_drift_cosine=1)

    assert warning in caplog.text
