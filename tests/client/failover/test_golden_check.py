"""What the golden check finds, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from arcface_client.backends.local import LocalModel
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import (
    ContractError,
    DeploymentError,
    OtherEmbeddingSpaceError,
)
from arcface_client.failover.golden_check import (
    ITSELF,
    MANIFEST,
    Finding,
    SettledSpace,
    golden_check,
    objection,
)
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.models.golden import GoldenReference
from arcface_client.observability.diagnostics import Diagnostics
from arcface_client.triton.embed_request import Deadline

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


class Given:
    """A runtime whose embeddings of the golden crops are given."""

    def __init__(self, gives: Embeddings) -> None:
        self._gives = gives

    def embed(self, crops: Crops) -> Embeddings:
        return self._gives

    def close(self) -> None:
        pass


def found(
    gives: Embeddings,
    golden: Embeddings | None = None,
    model: str = "arcface_trt",
    space: EmbeddingSpace | None = None,
) -> Finding:
    known = Diagnostics(backend="tensorrt", model=model, version=1)
    return golden_check(LocalModel(Given(gives), known, 8, space or EmbeddingSpace(), golden), Deadline(None))


@pytest.mark.parametrize(("drift", "accepted"), [(0.0, True), (0.0002, True), (0.002, False), (0.3, False)])
def test_the_drift_from_the_manifest_decides_and_is_reported(drift: float, accepted: bool) -> None:
    finding = found(embeddings(drift=drift), embeddings())
    assert finding.compared_with == MANIFEST
    assert finding.drift == pytest.approx(drift, abs=1e-6)
    problem = objection(finding, None, TOLERANCE)
    assert (problem is None) == accepted
    if problem:
        assert f"drift {drift:.2g}" in str(problem)
        assert "max_drift_cosine allows 0.001" in str(problem)


def test_a_reference_that_is_not_a_number_is_refused() -> None:
    finding = found(embeddings(), np.full((8, 512), np.nan, np.float32))
    assert objection(finding, None, TOLERANCE) is not None


def test_a_plan_with_nothing_to_compare_it_with_is_refused() -> None:
    with pytest.raises(DeploymentError, match="Nothing to check the plan against"):
        found(embeddings())


def test_without_a_manifest_an_onnx_model_is_its_own_reference() -> None:
    finding = found(embeddings(), model="arcface_onnx")
    assert (finding.compared_with, finding.drift) == (ITSELF, None)


def test_embeddings_of_another_length_are_refused() -> None:
    with pytest.raises(ContractError, match="length 3; expected 1"):
        found(3 * embeddings())


def settled(sha256: str | None = "a" * 64) -> SettledSpace:
    reference = GoldenReference(embeddings(), EmbeddingSpace(source_sha256=sha256))
    return SettledSpace("arcface_onnx:1 at one:1", reference)


def test_another_source_model_is_refused_though_its_own_manifest_agrees() -> None:
    finding = found(embeddings(1), embeddings(1))
    assert objection(finding, None, TOLERANCE) is None
    problem = objection(finding, settled(), TOLERANCE)
    assert isinstance(problem, OtherEmbeddingSpaceError)
    assert "another source model" in str(problem)
    assert "arcface_onnx:1 at one:1" in str(problem)


def test_a_space_is_completed_with_what_was_unknown_and_keeps_its_embeddings() -> None:
    began = settled(sha256=None)
    known = GoldenReference(embeddings(1), EmbeddingSpace(source_sha256="b" * 64, precision_class="float"))
    completed = began.completed(GoldenReference(embeddings(1))).completed(known)
    assert completed.settled_by == began.settled_by
    assert completed.reference.embeddings is began.reference.embeddings
    assert completed.reference.space == known.space


def test_two_tolerances_do_not_add_up() -> None:
    finding = found(embeddings(drift=0.0035), embeddings(drift=0.0009))
    assert objection(finding, None, TOLERANCE) is None
    assert objection(finding, settled(), TOLERANCE) is not None
