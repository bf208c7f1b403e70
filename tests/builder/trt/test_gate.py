from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from arcface_builder.check.gate import Verdict, judge, objection_to
from arcface_builder.check.reference_embeddings import ANOTHER_MODEL, another_model, standard_of

from arcface_builder.errors import BlindGateError, ParityError
from arcface_builder.graph.precision import typed_graph
from arcface_builder.store import Parity
from arcface_client.contract import Crops, Embeddings
from arcface_client.evaluation.perturbations import FAULTS
from arcface_client.runtimes.base import Embed
from support.embedders import alike, embedder
from support.engines import VERDICT


def test_an_fp16_plan_passes(verdict_of: Callable[[Embed], Verdict], small_graph: bytes) -> None:
    verdict = verdict_of(embedder(typed_graph(small_graph, "fp16")))

    verdict.check()
    assert 0 < verdict.largest_drift_cosine < 1e-4
    assert verdict.source_to_onnx < 1e-6
    assert verdict.between_batches < 1e-5
    assert (verdict.crops, verdict.batch_sizes) == (256, (1, 4, 16, 32))
    assert all(drift > 0.001 for drift in verdict.controls.values())
    assert set(verdict.controls) == {
        "red and blue swapped",
        "pixels normalised twice",
        "another image",
        ANOTHER_MODEL,
    }


def swapped(embed: Embed) -> Embed:
    return lambda crops: embed(np.ascontiguousarray(crops[..., ::-1]))


def one_place_wrong(embed: Embed) -> Embed:
    """The last place of a full batch embeds its neighbour, as a wrong grid size makes it."""

    def wrong(crops: Crops) -> Embeddings:
        embeddings = embed(crops)
        if len(crops) == 32:
            embeddings[31] = embeddings[30]
        return embeddings

    return wrong


def not_a_number(embed: Embed) -> Embed:
    return lambda crops: np.full_like(embed(crops), np.nan)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swapped, r"The plan drifts by 0\.\d+ from the source file; expected at most 0.001"),
        (one_place_wrong, "drifts by .* with its place in a batch"),
    ],
)
def test_a_plan_that_embeds_wrongly_is_refused(
    fault: Callable[[Embed], Embed],
    message: str,
    verdict_of: Callable[[Embed], Verdict],
    small_graph: bytes,
) -> None:
    verdict = verdict_of(fault(embedder(small_graph)))

    with pytest.raises(ParityError, match=message) as caught:
        verdict.check()
    assert not isinstance(caught.value, BlindGateError)


def test_not_a_number_never_passes(verdict_of: Callable[[Embed], Verdict], small_graph: bytes) -> None:
    with pytest.raises(ParityError):
        verdict_of(not_a_number(embedder(small_graph))).check()


def test_the_plan_of_another_model_is_refused(
    verdict_of: Callable[[Embed], Verdict], small_graph: bytes
) -> None:
    with pytest.raises(ParityError, match="The plan drifts by"):
        verdict_of(embedder(another_model(small_graph))).check()


def test_a_model_that_embeds_all_alike_makes_the_gate_blind(crops: Crops) -> None:
    verdict = judge(alike, standard_of(alike, alike, alike, crops), max_batch_size=8)

    with pytest.raises(BlindGateError):
        verdict.check()


@pytest.mark.parametrize(
    ("changes", "allowed", "objection"),
    [
        ({}, 0.001, None),
        ({}, 0.0002, "The plan drifts by 0.0003 from the source file"),
        ({"between_batches": 0.0004}, 0.0003, "with its place in a batch"),
        ({"source_to_onnx": 0.002}, 0.001, "The served ONNX model drifts by 0.002"),
        ({}, 0.2, "The gate is blind: red and blue swapped makes a drift of 0.1"),
        ({"crops": 1}, 0.001, "judged on too few crops, 1; expected 256 or more"),
        ({"controls": {}}, 0.001, "without controls of the gate: another image, another model, pixels"),
        ({"controls": dict.fromkeys(FAULTS, 0.1)}, 0.001, "without controls of the gate: another model."),
    ],
)
def test_a_recorded_verdict_is_held_against_another_tolerance(
    changes: dict[str, Any], allowed: float, objection: str | None
) -> None:
    verdict = replace(VERDICT, **changes)

    found = objection_to(verdict.to_parity(), allowed)

    assert (found is None) == (objection is None)
    assert objection is None or objection in str(found)


def test_a_record_that_lacks_what_the_gate_measured_is_objected_to() -> None:
    bare = Parity(largest_drift_cosine=1e-5, max_drift_cosine=1e-3, crops=256, compared_with="source file")

    assert "lacks batch_sizes, between_batches, controls" in str(objection_to(bare, 0.001))
