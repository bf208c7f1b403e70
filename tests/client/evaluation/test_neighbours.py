"""Neighbours in a gallery, against all similarities at once; and how they change with the gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcface_client.contract import Embeddings
from arcface_client.errors import InputError
from arcface_client.evaluation.neighbours import change, nearest, sample
from arcface_client.gallery import Gallery, GalleryInfo, gallery_table, open_gallery, write_gallery


def unit(count: int, seed: int, dim: int = 16) -> Embeddings:
    rows: Embeddings = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def gallery(folder: Path, embeddings: Embeddings, failed: tuple[int, ...] = (), parts: int = 1) -> Gallery:
    """A gallery of several parts, with the ids "0", "1", ..."""
    folder.mkdir()
    info = GalleryInfo(dim=embeddings.shape[1])
    for number, rows in enumerate(np.array_split(np.arange(len(embeddings)), parts)):
        errors = ["it is empty" if row in failed else None for row in rows]
        table = gallery_table(info, list(map(str, rows)), embeddings[rows], [None] * len(rows), errors)
        write_gallery(folder / f"part-{number}.parquet", info, [table])
    return open_gallery(folder)


@pytest.mark.parametrize("k", [1, 7, 5000])
def test_the_nearest_rows_of_all_parts_are_found_exactly_and_failed_rows_never(
    tmp_path: Path, k: int
) -> None:
    embeddings, queries = unit(3000, 1), unit(5, 2)
    found = nearest(gallery(tmp_path / "g", embeddings, failed=(3, 1000), parts=4), queries, k)
    similarity = queries @ embeddings.T
    similarity[:, [3, 1000]] = -2
    for row, matches in enumerate(found):
        expected = np.argsort(-similarity[row])[: min(k, 2998)]
        assert [match.id for match in matches] == list(map(str, expected))
        np.testing.assert_allclose(
            [match.similarity for match in matches], similarity[row, expected], atol=1e-6
        )


def test_a_query_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The queries have 8 numbers, the embeddings of .* 16"):
        nearest(gallery(tmp_path / "g", unit(3, 1)), unit(1, 2, dim=8), 1)


def test_a_sample_is_spread_over_all_parts_and_has_no_failed_row(tmp_path: Path) -> None:
    embeddings = unit(300, 1)
    opened = gallery(tmp_path / "g", embeddings, failed=(7,), parts=3)
    ids, rows = sample(opened, 1000)
    assert sorted(map(int, ids)) == [row for row in range(300) if row != 7]
    np.testing.assert_array_equal(rows, embeddings[list(map(int, ids))])
    assert {int(name) // 100 for name in sample(opened, 30)[0]} == {0, 1, 2}


def test_a_gallery_does_not_change_against_itself(tmp_path: Path) -> None:
    opened = gallery(tmp_path / "g", unit(200, 1), parts=2)
    found = change(opened, opened, size=50, k=5, threshold=0.2)
    assert (found.sample, found.k, found.recall, found.nearest) == (50, 5, 1, 1)
    assert (found.flips.count, found.flips.pairs, found.matched_flips) == (0, 50 * 49 // 2, 0)


def test_another_space_changes_neighbours_and_pairs_and_may_want_another_threshold(tmp_path: Path) -> None:
    # The new space is the old one with less spread, so that all similarities are larger.
    embeddings = unit(400, 1)
    shifted = embeddings + np.float32(0.4) * unit(1, 9)
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
    old = gallery(tmp_path / "old", embeddings)
    found = change(old, gallery(tmp_path / "new", shifted), size=100, k=10, threshold=0.3)
    assert 0.3 < found.recall < 1
    assert found.matching_threshold is not None
    assert found.matched_flips is not None
    assert found.matching_threshold > 0.3
    assert found.matched_flips < found.flips.count

    unrelated = change(old, gallery(tmp_path / "other", unit(400, 3, dim=32)), size=100, k=10, threshold=0.3)
    assert unrelated.recall < 0.1


def test_galleries_without_a_common_id_are_refused(tmp_path: Path) -> None:
    info = GalleryInfo(dim=16)
    other = tmp_path / "other.parquet"
    write_gallery(other, info, [gallery_table(info, ["a.jpg"], unit(1, 1), [None], [None])])
    with pytest.raises(InputError, match="have 0 of 3 sampled ids in common"):
        change(gallery(tmp_path / "g", unit(3, 1)), open_gallery(other), size=10, k=1, threshold=0.3)
