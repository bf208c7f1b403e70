"""Galleries: what is written is read again, and two embedding spaces are never mixed."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcface_client.contract import Embeddings
from arcface_client.errors import InputError, OtherEmbeddingSpaceError
from arcface_client.gallery import GalleryInfo, gallery_table, open_gallery, write_gallery
from arcface_client.models.embedding_space import EmbeddingSpace

SPACE = EmbeddingSpace(
    source_sha256="a1" * 32, preprocessing="RGB, (x - 127.5) / 127.5", precision_class="float"
)
REPLICA = "small_onnx:2 at localhost:8001"
INFO = GalleryInfo(
    space=SPACE, dim=8, model="small_onnx", version=2, command="arcface-client embed", job={"a": [1]}
)


def rows(count: int, seed: int = 0) -> Embeddings:
    return np.random.default_rng(seed).standard_normal((count, INFO.dim)).astype(np.float32)


def table(
    info: GalleryInfo, embeddings: Embeddings, first: int = 0, failed: tuple[int, ...] = ()
) -> pa.Table:
    count = len(embeddings)
    errors = ["it is empty" if index in failed else None for index in range(count)]
    sources = [None if error else REPLICA for error in errors]
    return gallery_table(
        info, [f"{first + index}.jpg" for index in range(count)], embeddings, sources, errors
    )


def test_a_file_holds_what_was_written_and_which_model_made_it(tmp_path: Path) -> None:
    path, embeddings = tmp_path / "gallery.parquet", rows(5)
    assert write_gallery(path, INFO, [table(INFO, embeddings[:2]), table(INFO, embeddings[2:], 2, (1,))]) == 5

    gallery = open_gallery(path)
    assert (gallery.count, gallery.info) == (5, INFO)
    ids, loaded = gallery.load()
    assert ids == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    np.testing.assert_array_equal(loaded, embeddings[[0, 1, 2, 4]])
    assert list(gallery.failed()) == [("3.jpg", "it is empty")]
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.parquet"]


def test_a_column_of_embeddings_has_the_type_that_vector_searches_take(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery.parquet", INFO, [table(INFO, rows(3), failed=(1,))])
    read = pq.read_table(tmp_path / "gallery.parquet")
    assert read.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert np.isnan(read["embedding"][1].as_py()).all()
    assert read["source"].to_pylist() == [REPLICA, None, REPLICA]


def test_row_groups_do_not_depend_on_the_tables_that_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcface_client.gallery.ROWS_AT_ONCE", 4)
    embeddings = rows(10)
    for name, cuts in (("one", [0, 10]), ("many", [0, 1, 3, 9, 10])):
        pieces = [table(INFO, embeddings[a:b], a) for a, b in itertools.pairwise(cuts)]
        write_gallery(tmp_path / f"{name}.parquet", INFO, pieces)
    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups == 3
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    assert [len(batch) for batch in open_gallery(tmp_path / "one.parquet").batches(size=3)] == [3, 3, 3, 1]


def test_a_folder_of_parts_is_one_gallery_without_the_part_that_is_being_written(tmp_path: Path) -> None:
    embeddings = rows(6)
    for first in (0, 2, 4):
        part = table(INFO, embeddings[first : first + 2], first)
        write_gallery(tmp_path / f"part-{first:04}.parquet", INFO, [part])
    (tmp_path / ".1f.part").write_bytes(b"half")
    shutil.copy(tmp_path / "part-0000.parquet", tmp_path / ".hidden.parquet")
    ids, loaded = open_gallery(tmp_path).load()
    assert ids == [f"{index}.jpg" for index in range(6)]
    np.testing.assert_array_equal(loaded, embeddings)


@pytest.mark.parametrize(
    ("space", "dim", "told"),
    [
        (EmbeddingSpace(source_sha256="b2" * 32), 8, "source SHA-256 b2b2b2b2b2b2"),
        (EmbeddingSpace(source_sha256="a1" * 32, precision_class="int8"), 8, "int8"),
        (SPACE, 16, "16 numbers"),
    ],
)
def test_two_embedding_spaces_are_not_mixed_and_both_are_named(
    tmp_path: Path, space: EmbeddingSpace, dim: int, told: str
) -> None:
    other = GalleryInfo(space=space, dim=dim, model="other_onnx", version=1)
    write_gallery(tmp_path / "1.parquet", INFO, [table(INFO, rows(1))])
    write_gallery(tmp_path / "2.parquet", other, [other.schema().empty_table()])
    with pytest.raises(OtherEmbeddingSpaceError) as caught:
        open_gallery(tmp_path)
    for text in ("small_onnx:2", "a1a1a1a1a1a1", "other_onnx:1", told):
        assert text in str(caught.value)


def test_an_archive_is_read_as_a_gallery(tmp_path: Path) -> None:
    embeddings = rows(3)
    texts = {"model": "small_onnx", "version": "2", "source_sha256": "a1" * 32}
    np.savez(tmp_path / "old.npz", embeddings=embeddings, paths=np.array(["a", "b", "c"]), **texts)
    gallery = open_gallery(tmp_path / "old.npz")
    assert (gallery.info.model, gallery.info.version, gallery.count) == ("small_onnx", 2, 3)
    assert gallery.info.space == EmbeddingSpace(source_sha256="a1" * 32)
    ids, loaded = gallery.load()
    assert ids == ["a", "b", "c"]
    np.testing.assert_array_equal(loaded, embeddings)


def test_what_is_no_gallery_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for name, told in (
        ("other.parquet", "is not a gallery"),
        ("text.parquet", "cannot be read as Parquet"),
        ("other.npz", "is not an .npz that"),
        ("absent.parquet", "There is no gallery"),
        ("absent.npz", "No such file"),
    ):
        with pytest.raises(InputError, match=told):
            open_gallery(tmp_path / name)


def test_a_gallery_in_a_bucket_is_read_by_its_url(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs the extra bulk")
    write_gallery(tmp_path / "1.parquet", INFO, [table(INFO, rows(2))])
    memory = fsspec.filesystem("memory")
    memory.pipe("/gallery/part-1.parquet", (tmp_path / "1.parquet").read_bytes())
    assert open_gallery("memory://gallery/").load()[0] == ["0.jpg", "1.jpg"]
    memory.rm("/gallery", recursive=True)
