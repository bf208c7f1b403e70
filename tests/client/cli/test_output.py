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
