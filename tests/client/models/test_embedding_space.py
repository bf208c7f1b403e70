from __future__ import annotations

import pytest

from arcface_client.models.embedding_space import EmbeddingSpace

OURS = EmbeddingSpace(
    source_sha256="a" * 64, preprocessing="RGB, (x - 127.5) / 127.5", precision_class="float"
)


def test_what_is_unknown_conflicts_with_nothing() -> None:
    assert OURS.conflict(OURS) is None
    assert OURS.conflict(EmbeddingSpace()) is None
    assert EmbeddingSpace().conflict(OURS) is None


@pytest.mark.parametrize(
    ("other", "conflict"),
    [
        (
            EmbeddingSpace(source_sha256="b" * 64),
            "another source model, SHA-256 bbbbbbbbbbbb..., not aaaaaaaaaaaa...",
        ),
        (
            EmbeddingSpace(preprocessing="RGB, (x - 127.5) / 128"),
            "another preprocessing, RGB, (x - 127.5) / 128, not RGB, (x - 127.5) / 127.5",
        ),
        (EmbeddingSpace(precision_class="int8"), "another precision class, int8, not float"),
    ],
)
def test_a_difference_is_named(other: EmbeddingSpace, conflict: str) -> None:
    assert OURS.conflict(other) == conflict


def test_only_what_is_unknown_is_filled_in() -> None:
    assert EmbeddingSpace().completed(OURS) == OURS
    other = EmbeddingSpace(source_sha256="b" * 64, preprocessing="mean 0", precision_class="int8")
    assert OURS.completed(other) == OURS
