"""A file that a command writes is whole, or what was there before stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arcface_client.cli.output import check_output, embedding_archive, replace_text
from arcface_client.errors import InputError
from support.limits import small_files_only

KEPT = r"{} cannot be written: File too large\. What was there before is kept\."


def write_archive(path: Path, rows: int) -> None:
    with embedding_archive(path) as add:
        add(["a"] * rows, np.zeros((rows, 512), np.float32))


def write_text(path: Path, rows: int) -> None:
    replace_text(path, "text" * rows)


@pytest.mark.parametrize("write", [write_archive, write_text])
def test_a_file_that_does_not_fit_is_named_and_leaves_what_was_there(
    tmp_path: Path, write: Callable[[Path, int], None]
) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with small_files_only(), pytest.raises(InputError, match=KEPT.format(path)):
        write(path, 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_holds_what_was_added_to_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 128)).astype(np.float32)
    with embedding_archive(tmp_path / "out.npz") as add:
        add(["a", "b"], rows[:2])
        add(["c", "d", "é" * 30], rows[2:])
    with np.load(tmp_path / "out.npz") as loaded:
        np.testing.assert_array_equal(loaded["embeddings"], rows)
        assert loaded["paths"].tolist() == ["a", "b", "c", "d", "é" * 30]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link.npz").symlink_to("data/real.npz")
    with embedding_archive(tmp_path / "link.npz") as add:
        add(["a"], np.zeros((1, 512), np.float32))
    assert (tmp_path / "link.npz").is_symlink()
    with np.load(tmp_path / "data/real.npz") as loaded:
        assert loaded["paths"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/proc/out.npz", r"^/proc/out\.npz cannot be written: No such file or directory\."),
        ("/nowhere/out.npz", "There is no folder /nowhere to write out.npz to; make it first"),
        ("/tmp", "/tmp is not a regular file; give the name of a file to write"),
        (os.devnull, "/dev/null is not a regular file"),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_before_the_work(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_output(Path(path))
