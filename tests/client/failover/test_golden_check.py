"""What the golden check finds, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from arcface_client.backends.local import LocalModel
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ContractError, DriftError
from arcface_client.failover.golden_check import MANIFEST, Finding, golden_check, objection
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.models.golden import GoldenReference
from arcface_client.observability.diagnostics import Diagnostics
from arcface_client.triton.embed_request import Deadline

TOLERANCE = 0.001


def embeddings(*, drift: float = 0.0) -> Embeddings:
    """Unit rows, turned so that each drifts as far as asked."""
    rows, others = np.random.default_rng(0).standard_normal((2, 8, 512))
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
) -> Finding:
    known = Diagnostics(backend="tensorrt", model="arcface_trt", version=1)
    reference = None if golden is None else GoldenReference(golden)
    return golden_check(LocalModel(Given(gives), known, EmbeddingSpace(), reference), Deadline(None))


def test_embeddings_of_another_length_are_refused() -> None:
    with pytest.raises(ContractError, match="length 3; expected 1"):
        found(3 * embeddings())


@pytest.mark.parametrize(("drift", "allowed"), [(0.0, True), (0.001, True), (0.0011, False), (np.nan, False)])
def test_the_tolerance_decides_and_nan_never_passes(drift: float, allowed: bool) -> None:
    error = objection(Finding(embeddings(), GoldenReference(embeddings()), MANIFEST, drift), None, "", 0.001)
    assert (error is None) == allowed
    if error is not None:
        assert isinstance(error, DriftError)
        assert str(error) == (
            f"its golden embeddings drift {drift:.2g} from the reference (manifest); "
            "max_drift_cosine allows 0.001"
        )
        np.testing.assert_equal(error.drift, drift)


def test_two_tolerances_do_not_add_up() -> None:
    settled = GoldenReference(embeddings())
    finding = found(embeddings(drift=0.0035), embeddings(drift=0.0009))
    assert objection(finding, None, "", TOLERANCE) is None
    assert objection(finding, settled, "arcface_onnx:1", TOLERANCE) is not None


@pytest.mark.parametrize(("drift", "passes"), [(0.006, True), (0.02, False)])
def test_int8_may_drift_from_its_own_golden_embeddings_as_far_as_from_its_source(
    drift: float, passes: bool
) -> None:
    known = Diagnostics(backend="openvino", model="arcface_openvino", version=1)
    space = EmbeddingSpace(precision_class="int8-0123456789ab")
    reference = GoldenReference(embeddings(), space, drift=0.01)
    model = LocalModel(Given(embeddings(drift=drift)), known, space, reference)
    finding = golden_check(model, Deadline(None))

    assert (objection(finding, None, "", TOLERANCE, "int8") is None) == passes
    assert "embedding.space asks for float" in str(objection(finding, None, "", 1, "float"))
