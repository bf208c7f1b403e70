from __future__ import annotations

from arcface_client.models.embedding_space import EmbeddingSpace, describe_preprocessing

OURS = EmbeddingSpace(
    source_sha256="a" * 64, preprocessing="RGB, mean 127.5, std 127.5", precision_class="float"
)


def test_what_is_not_known_speaks_against_nothing() -> None:
    assert OURS.conflict(OURS) is None
    assert OURS.conflict(EmbeddingSpace()) is None
    assert EmbeddingSpace().conflict(OURS) is None


def test_another_source_preprocessing_or_class_of_precision_is_another_gallery() -> None:
    assert OURS.conflict(EmbeddingSpace(source_sha256="b" * 64)) == (
        "another source model, SHA-256 bbbbbbbbbbbb..., not aaaaaaaaaaaa..."
    )
    assert OURS.conflict(EmbeddingSpace(preprocessing="RGB, mean 127.5, std 128")) == (
        "another preprocessing, RGB, mean 127.5, std 128, not RGB, mean 127.5, std 127.5"
    )
    assert OURS.conflict(EmbeddingSpace(precision_class="int8")) == (
        "another class of precision, int8, not float"
    )


def test_what_is_not_known_is_completed_and_what_is_known_stays() -> None:
    assert EmbeddingSpace().completed(OURS) == OURS
    assert OURS.completed(EmbeddingSpace()) == OURS
    other = EmbeddingSpace(source_sha256="b" * 64, preprocessing="mean 0", precision_class="int8")
    assert OURS.completed(other) == OURS


def test_a_preprocessing_is_one_line() -> None:
    assert describe_preprocessing((127.5,) * 3, (128.0,) * 3, "RGB") == "RGB, mean 127.5, std 128"
    assert describe_preprocessing((1.0, 2.0, 3.0), (1.0,) * 3, "BGR") == "BGR, mean 1/2/3, std 1"
