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


@pytest.mark.parametrize(
    ("ours", "theirs", "comparable"),
    [
        ("int8-0123456789ab", "int8-0123456789ab", True),
        ("int8-0123456789ab", "int8-ba9876543210", False),
        ("int8-0123456789ab", "int8", True),  # of a calibration that is unknown
        ("int8-0123456789ab", "float", False),
    ],
)
def test_each_calibration_of_int8_is_a_space_of_its_own(ours: str, theirs: str, comparable: bool) -> None:
    conflict = EmbeddingSpace(precision_class=ours).conflict(EmbeddingSpace(precision_class=theirs))

    assert (conflict is None) == comparable
