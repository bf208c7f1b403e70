from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcface_client.contract import Embeddings
from arcface_client.models.golden import (
    cannot_tell_apart,
    from_text,
    golden_crops,
    golden_sha256,
    largest_drift,
    to_text,
)


def unit(seed: int = 0) -> Embeddings:
    rows = np.random.default_rng(seed).standard_normal((8, 512)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]


def test_the_golden_crops_never_change() -> None:
    assert golden_crops().shape == (8, 112, 112, 3)
    assert golden_sha256() == "99d0aa7705cb347c0337284cc27ff6b0dc99be54da98a4d6a29244f04dff2e8c"
    with pytest.raises(ValueError, match="read-only"):
        golden_crops()[0] = 0


@given(st.floats(0, 1.5), st.integers(0, 99))
def test_drift_is_the_cosine_distance(angle: float, seed: int) -> None:
    left, other = unit(seed), unit(seed + 100)
    other -= np.einsum("nd,nd->n", left, other)[:, np.newaxis] * left
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    right = (np.cos(angle) * left + np.sin(angle) * other).astype(np.float32)
    assert largest_drift(left, right) == pytest.approx(1 - np.cos(angle), rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 2.0, np.nan])
def test_one_wrong_row_is_a_drift(factor: float) -> None:
    changed = unit()
    changed[5] *= factor
    assert not largest_drift(unit(), changed) <= 0.001


def test_a_network_that_takes_all_faces_for_one_is_told_with_the_usual_causes() -> None:
    assert cannot_tell_apart(unit()) is None
    alike = unit() + 3 * unit(1)[:1]
    told = cannot_tell_apart(alike / np.linalg.norm(alike, axis=1, keepdims=True))
    assert told is not None
    assert told.startswith("different faces have a mean cosine similarity of 0.9")
    assert "--normalisation" in told


def test_embeddings_survive_a_manifest() -> None:
    np.testing.assert_array_equal(from_text(to_text(unit())), unit())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", "base64"),
        (base64.b64encode(b"four").decode(), "8 rows of float32, not 4 bytes"),
        (to_text(2 * unit()), "rows of length one"),
        (to_text(np.full((8, 512), np.nan, np.float32)), "rows of length one"),
    ],
)
def test_a_text_that_is_not_embeddings_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        from_text(text)
