from __future__ import annotations

import resource
from pathlib import Path

import pytest

from arcface_client.errors import InputError
from arcface_client.output import replace_text


def test_a_file_that_does_not_fit_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    replace_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            InputError, match=r"report\.html cannot be written: .*What was there before is kept"
        ):
            replace_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_no_utf8_is_written_as_its_bytes(tmp_path: Path) -> None:
    replace_text(tmp_path / "report.html", "a crop: bad\udcff.png")

    assert (tmp_path / "report.html").read_text() == "a crop: bad\\udcff.png"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
