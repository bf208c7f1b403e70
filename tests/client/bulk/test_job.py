"""A job embeds each id once, whatever happens to it, and says in one line what it cannot do."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.bulk.ids import IdSet
from arcface_client.bulk.job import Result, fill_gallery
from arcface_client.bulk.rows import Rows
from arcface_client.bulk.source import Item, Place, Source, open_source
from arcface_client.bulk.stream import Counts, Stream
from arcface_client.contract import Embeddings
from arcface_client.errors import (
    DeploymentError,
    InputError,
    OtherEmbeddingSpaceError,
    SourceUnavailableError,
)
from arcface_client.gallery import GalleryInfo, open_gallery
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.observability.diagnostics import Served
from arcface_client.triton.embed_request import EmbedRequest
from support.galleries import rows_of
from support.limits import small_files_only
from support.stand_in import StandIn

INFO = GalleryInfo(dim=512, model="tiny", version=1, space=EmbeddingSpace(source_sha256="a" * 64))


def run(
    folder: Path, output: Path, embedder: EmbeddingBackend, info: GalleryInfo = INFO, **how: Any
) -> Result:
    streaming = {name: how.pop(name) for name in ("resize", "workers") if name in how}
    observe = how.pop("observe", lambda counts, rows: None)
    stream = Stream(open_source([str(folder)]), embedder, observe=observe, **streaming)
    return fill_gallery(stream, output, info, **{"part_rows": 5, **how})


@pytest.mark.parametrize("name", ["gallery.parquet", "gallery"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_gallery_has_each_crops_embedding_and_where_it_was_made(
    name: str,
    workers: int,
    folder: Path,
    files: dict[str, bytes],
    embedder: EmbeddingBackend,
    expected: Embeddings,
    tmp_path: Path,
) -> None:
    output = tmp_path / name
    result = run(folder, output, embedder, workers=workers, part_rows=1000)
    assert (result.rows, result.failed, result.counts.done) == (20, 0, 20)
    ids, embeddings = open_gallery(output).load()
    assert ids == list(files)
    np.testing.assert_allclose(embeddings, expected[:20], atol=1e-6)
    assert {row["source"] for row in rows_of(output).values()} == {"tiny:1 at this process"}
    assert open_gallery(output).info.job["sources"] == [str(folder)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", name]


def test_a_file_whose_name_is_not_utf_8_is_embedded_once(
    folder: Path, embedder: EmbeddingBackend, tmp_path: Path
) -> None:
    for name, content in ((b"\xff.png", (folder / "000.png").read_bytes()), (b"\xfe.png", b"")):
        (folder / os.fsdecode(name)).write_bytes(content)
    output = tmp_path / "gallery"
    assert run(folder, output, embedder).counts.done == 22
    assert rows_of(output)["\\udcfe.png"]["error"] == "\\udcfe.png cannot be read as an image: it is empty."
    assert rows_of(output)["\\udcff.png"]["error"] is None
    assert run(folder, output, embedder).counts.done == 0


def test_a_second_run_adds_what_is_new_and_embeds_nothing_twice(
    folder: Path, embedder: EmbeddingBackend, tmp_path: Path
) -> None:
    moved = folder.parent / "later.png"
    (folder / "004.png").rename(moved)
    output = tmp_path / "gallery"
    output.mkdir()
    for name in (".0f.part", ".hidden", "notes.txt"):
        (output / name).touch()
    assert run(folder, output, embedder).counts.done == 19
    moved.rename(folder / "004.png")
    again = run(folder, output, embedder)
    assert (again.rows, again.counts.done, again.counts.kept) == (20, 1, 19)
    others = [path.name for path in output.iterdir() if path.suffix != ".parquet"]
    assert sorted(others) == [".hidden", "notes.txt"]  # what a killed process left half is gone
    assert len(rows_of(output)) == 20


def test_a_whole_file_is_left_as_it_is(folder: Path, embedder: EmbeddingBackend, tmp_path: Path) -> None:
    output = tmp_path / "gallery.parquet"
    run(folder, output, embedder)
    before = output.stat().st_mtime_ns
    assert run(folder, output, embedder).counts.done == 0
    assert output.stat().st_mtime_ns == before
    assert run(folder, output, embedder, resume=False).counts.done == 20


@pytest.mark.parametrize("name", ["gallery.parquet", "gallery"])
def test_what_failed_keeps_its_reason_and_is_embedded_again_on_demand(
    name: str, folder: Path, files: dict[str, bytes], embedder: EmbeddingBackend, tmp_path: Path
) -> None:
    output = tmp_path / name
    (folder / "003.png").write_bytes(b"")
    assert run(folder, output, embedder).failed == 1
    row = rows_of(output)["003.png"]
    assert (row["error"], row["source"]) == ("003.png cannot be read as an image: it is empty.", None)
    assert np.isnan(row["embedding"]).all()

    (folder / "003.png").write_bytes(files["003.png"])
    assert run(folder, output, embedder).failed == 1
    result = run(folder, output, embedder, retry_failed=True)
    assert (result.rows, result.failed, result.counts.done) == (20, 0, 1)
    assert rows_of(output)["003.png"]["error"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", name]


@pytest.mark.parametrize("name", ["gallery.parquet", "gallery"])
@pytest.mark.parametrize(
    ("how", "info", "told"),
    [
        ({"resize": True}, INFO, "belongs to another job: resize was False there, and is True now"),
        ({}, GalleryInfo(dim=512, model="tiny", version=2), "version was 1 there, and is 2 now"),
        (
            {},
            GalleryInfo(dim=512, model="tiny", version=1, space=EmbeddingSpace(source_sha256="b" * 64)),
            r"is by tiny:1 of source SHA-256 a{12}\.\.\..*, this job by tiny:1 of source SHA-256 b{12}\.\.\.",
        ),
    ],
)
def test_the_output_of_another_job_is_refused_and_the_difference_named(
    how: dict[str, Any],
    info: GalleryInfo,
    told: str,
    name: str,
    folder: Path,
    embedder: EmbeddingBackend,
    tmp_path: Path,
) -> None:
    run(folder, tmp_path / name, embedder)
    with pytest.raises((InputError, OtherEmbeddingSpaceError), match=told):
        run(folder, tmp_path / name, embedder, info, **how)
    assert len(rows_of(tmp_path / name)) == 20


def test_an_id_that_occurs_again_is_left_out_counted_and_named(
    folder: Path, embedder: EmbeddingBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "list.txt").write_text("crops/000.png\ncrops/001.png\ncrops/000.png\n")
    for kept in (0, 2):
        result = run(tmp_path / "list.txt", tmp_path / "gallery", embedder)
        assert (result.rows, result.counts.kept, result.counts.duplicates) == (2, kept, 1)
        assert "The id crops/000.png occurs again" in caplog.text


def test_a_source_that_is_gone_ends_the_job_and_keeps_what_was_embedded(
    folder: Path, embedder: EmbeddingBackend, tmp_path: Path
) -> None:
    run(folder, tmp_path / "gallery", embedder)
    source = open_source([str(folder)])
    items = [Item(f"more/{index}", str(folder / "more.png")) for index in range(300)]

    class Gone(Place):
        def parts(self) -> Iterator[Any]:
            return self.items()

        def items(self) -> Iterator[Item]:
            folder.rename(tmp_path / "away")
            yield from items

        def count(self) -> int:
            return len(items)

    stream = Stream(Source(source.names, (Gone(),)), embedder, observe=lambda *_: None)
    with pytest.raises(SourceUnavailableError, match=r"is gone\..*run the same command again"):
        fill_gallery(stream, tmp_path / "gallery", INFO)
    assert len(rows_of(tmp_path / "gallery")) == 20


def test_a_full_disk_ends_the_job_in_one_line_and_the_next_run_does_the_rest(
    folder: Path, embedder: EmbeddingBackend, tmp_path: Path
) -> None:
    output = tmp_path / "gallery"
    with small_files_only(12_000), pytest.raises(InputError, match=r"cannot be written: File too large\."):
        run(folder, output, embedder)
    assert all(path.suffix == ".parquet" for path in output.iterdir())
    run(folder, output, embedder)
    assert len(rows_of(output)) == 20


def test_a_process_that_is_killed_while_it_reads_ends_the_job_in_one_line(
    folder: Path, embedder: EmbeddingBackend, tmp_path: Path
) -> None:
    for index in range(600):
        (folder / f"more{index}.png").hardlink_to(folder / "000.png")

    def kill(counts: Counts, some: Rows | None) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(DeploymentError, match=r"was killed.*fewer --workers"):
        run(folder, tmp_path / "gallery", embedder, workers=1, observe=kill)
    assert len(rows_of(tmp_path / "gallery")) >= 128
    assert run(folder, tmp_path / "gallery", embedder).rows == 620


class Late(StandIn):
    """Its first call answers at once, the second one after the job."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = itertools.count()
        self.begun, self.job_ended, self.done = threading.Event(), threading.Event(), threading.Event()

    def run(self, request: EmbedRequest) -> Served:
        is_second = next(self.calls) == 1
        if is_second:
            self.begun.set()
            self.job_ended.wait()
        served = super().run(request)
        if is_second:
            self.done.set()
        return served


def test_a_call_that_outlives_its_job_still_has_its_crops(folder: Path) -> None:
    for index in range(280):
        (folder / f"more{index}.png").hardlink_to(folder / "000.png")
    late = Late()
    found = Stream(open_source([str(folder)]), late, workers=1, observe=lambda *_: None).rows(IdSet())
    next(found)
    assert late.begun.wait(20)
    found.close()
    late.job_ended.set()
    assert late.done.wait(20)


def test_two_jobs_do_not_write_to_one_gallery(
    folder: Path, embedder: EmbeddingBackend, tmp_path: Path
) -> None:
    def observe(counts: object, some: object) -> None:
        with pytest.raises(InputError, match="Another process is writing to"):
            run(folder, tmp_path / "gallery", embedder)

    run(folder, tmp_path / "gallery", embedder, observe=observe)
    assert len(rows_of(tmp_path / "gallery")) == 20
