"""The verdict on what the golden crops showed."""

from __future__ import annotations

import numpy as np
import pytest

from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ContractError, DeploymentError, ModelNotFoundError, OtherEmbeddingSpaceError
from arcface_client.failover.golden_check import (
    ITSELF,
    MANIFEST,
    ONNX_SIBLING,
    SettledIdentity,
    examine,
    objection,
)
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.models.golden import GoldenReference
from arcface_client.runtimes.base import Embed

TOLERANCE = 0.001


def embeddings(seed: int = 0, *, drift: float = 0.0) -> Embeddings:
    """Unit rows, turned so that each drifts as far as asked."""
    generator = np.random.default_rng(seed)
    rows, others = generator.standard_normal((2, 8, 512))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    others -= rows * np.sum(rows * others, axis=1, keepdims=True)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    cosine = 1 - drift
    turned: Embeddings = (cosine * rows + np.sqrt(1 - cosine**2) * others).astype(np.float32)
    return turned


def by(result: Embeddings) -> Embed:
    return lambda crops: result


def absent(crops: Crops) -> Embeddings:
    raise ModelNotFoundError("There is no model arcface_onnx")


@pytest.mark.parametrize(("drift", "accepted"), [(0.0, True), (0.0002, True), (0.002, False), (0.3, False)])
def test_drift_from_the_record_decides_and_is_said(drift: float, accepted: bool) -> None:
    record = GoldenReference(embeddings())
    finding = examine(by(embeddings(drift=drift)), "arcface_trt", record, None)
    assert finding.compared_with == MANIFEST
    assert finding.drift == pytest.approx(drift, abs=1e-6)
    problem = objection(finding, None, TOLERANCE)
    assert (problem is None) == accepted
    if problem:
        assert f"drift {drift:.2g}" in str(problem)
        assert "max_drift_cosine allows 0.001" in str(problem)


def test_embeddings_that_are_no_numbers_are_refused() -> None:
    finding = examine(
        by(embeddings()), "arcface_trt", GoldenReference(np.full((8, 512), np.nan, np.float32)), None
    )
    assert objection(finding, None, TOLERANCE) is not None


def test_without_a_record_a_plan_is_held_against_its_onnx_sibling() -> None:
    finding = examine(by(embeddings(drift=0.002)), "arcface_trt", None, by(embeddings()))
    assert finding.compared_with == ONNX_SIBLING
    assert finding.drift == pytest.approx(0.002, abs=1e-6)


@pytest.mark.parametrize("sibling", [None, absent])
def test_a_plan_that_nothing_proves_is_refused(sibling: Embed | None) -> None:
    with pytest.raises(DeploymentError, match="nothing proves it"):
        examine(by(embeddings()), "arcface_trt", None, sibling)


def test_without_a_record_an_onnx_model_is_its_own_reference() -> None:
    finding = examine(by(embeddings()), "arcface_onnx", None, None)
    assert (finding.compared_with, finding.drift) == (ITSELF, None)


def test_embeddings_of_another_length_are_refused() -> None:
    with pytest.raises(ContractError, match="of length 3; expected 1"):
        examine(by(3 * embeddings()), "arcface_onnx", None, None)


def identity(sha256: str | None = "a" * 64) -> SettledIdentity:
    reference = GoldenReference(embeddings(), EmbeddingSpace(source_sha256=sha256))
    return SettledIdentity("arcface_onnx:1 at one:1", reference)


def test_another_source_model_is_refused_though_it_is_right_by_its_own_record() -> None:
    finding = examine(by(embeddings(1)), "arcface_onnx", GoldenReference(embeddings(1)), None)
    assert objection(finding, None, TOLERANCE) is None
    problem = objection(finding, identity(), TOLERANCE)
    assert isinstance(problem, OtherEmbeddingSpaceError)
    assert "another source model" in str(problem)
    assert "arcface_onnx:1 at one:1" in str(problem)


def test_another_source_sha256_is_refused_though_the_embeddings_agree() -> None:
    other = GoldenReference(embeddings(), EmbeddingSpace(source_sha256="b" * 64))
    finding = examine(by(embeddings()), "arcface_onnx", other, None)
    assert isinstance(objection(finding, identity(), TOLERANCE), OtherEmbeddingSpaceError)
    assert objection(finding, identity(sha256=None), TOLERANCE) is None


def test_an_identity_is_completed_by_what_nobody_knew_and_keeps_its_embeddings() -> None:
    began = identity(sha256=None)
    known = GoldenReference(embeddings(1), EmbeddingSpace(source_sha256="b" * 64, precision_class="float"))
    completed = began.completed(GoldenReference(embeddings(1))).completed(known)
    assert completed.settled_by == began.settled_by
    assert completed.reference.embeddings is began.reference.embeddings
    assert completed.reference.space == known.space


def test_two_tolerances_do_not_add_up() -> None:
    reference = GoldenReference(embeddings(drift=0.0009))
    finding = examine(by(embeddings(drift=0.0035)), "arcface_trt", reference, None)
    assert objection(finding, None, TOLERANCE) is None
    assert objection(finding, identity(), TOLERANCE) is not None
