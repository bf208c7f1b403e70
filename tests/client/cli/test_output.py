from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from arcface_client.cli.output import EmbeddingArchive, check_output, replace_text, replacing
from arcface_client.errors import InputError

KEPT = r"{} cannot be written: File too large\. What was there before is kept\."


@contextmanager
def small_files_only() -> Iterator[None]:
    """What a disk that is nearly full is to this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    replace_text(path, "old")
    with small_files_only(), pytest.raises(InputError, match=KEPT.format(path)):
        replace_text(path, "new" * 1000)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_that_does_not_fit_names_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    path.write_text("old")
    told = pytest.raises(InputError, match=KEPT.format(path))
    with small_files_only(), told, EmbeddingArchive(path) as archive:
        archive.add(["a"] * 100, np.zeros((100, 512), np.float32))

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_work() -> None:
    with pytest.raises(InputError, match=r"^/proc/out\.npz cannot be written: No such file or directory\."):
        check_output(Path("/proc/out.npz"))


def test_a_dash_is_refused() -> None:
    with pytest.raises(InputError, match="is not standard output here"):
        check_output(Path("-"))


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with replacing(path) as slow:
        slow.write(b"slow, ")
        thread = threading.Thread(target=replace_text, args=(path, "quick"))
        thread.start()
        thread.join()
        assert path.read_text() == "quick"
        slow.write(b"but whole")

    assert path.read_text() == "slow, but whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_permissions_that_new_files_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "report.html", "new")
    finally:
        os.umask(before)

    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o640


def test_a_path_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    replace_text(tmp_path / "report.html", "a crop: bad\udcff.png")

    assert (tmp_path / "report.html").read_text() == "a crop: bad\\udcff.png"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_archive_holds_what_was_added_to_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    with EmbeddingArchive(tmp_path / "out.npz") as archive:
        archive.add(["a", "b"], rows[:2])
        archive.add(["c", "d", "é" * 30], rows[2:])
    with np.load(tmp_path / "out.npz") as loaded:
        np.testing.assert_array_equal(loaded["embeddings"], rows)
        assert loaded["paths"].tolist() == ["a", "b", "c", "d", "é" * 30]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_an_empty_archive_can_be_loaded(tmp_path: Path) -> None:
    with EmbeddingArchive(tmp_path / "out.npz"):
        pass
    with np.load(tmp_path / "out.npz") as loaded:
        assert loaded["embeddings"].shape == (0, 512)
        assert loaded["paths"].shape == (0,)


def test_an_error_leaves_the_old_archive_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out.npz").write_bytes(b"old")
    with pytest.raises(RuntimeError), EmbeddingArchive(tmp_path / "out.npz") as archive:
        archive.add(["a"], np.zeros((1, 512), np.float32))
        raise RuntimeError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.npz", b"old")]


def test_an_archive_that_is_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; give the name of a file"):
        EmbeddingArchive(tmp_path)


def test_a_file_that_is_not_a_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"is not a regular file"):
        EmbeddingArchive(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"is not a regular file"):
        EmbeddingArchive(Path(os.devnull))


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link.npz").symlink_to("data/real.npz")
    with EmbeddingArchive(tmp_path / "link.npz") as archive:
        archive.add(["a"], np.zeros((1, 512), np.float32))
    assert (tmp_path / "link.npz").is_symlink()
    with np.load(tmp_path / "data/real.npz") as loaded:
        assert loaded["paths"].tolist() == ["a"]


def test_an_archive_in_a_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        EmbeddingArchive(tmp_path / "none" / "out.npz")
