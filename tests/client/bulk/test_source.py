"""Every kind of source gives its crops, with ids that stay the same."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcface_client.bulk.decode import decode
from arcface_client.bulk.source import open_source
from arcface_client.contract import Crops
from arcface_client.errors import ImageFileError, InputError, MissingExtraError, SourceUnavailableError
from support.file_server import FileServer

Files = dict[str, bytes]


def tar(files: Files, mode: str = "w") -> bytes:
    """A tar file in webdataset's layout: each image has a label beside it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            for member, data in ((name, content), (f"{name.removesuffix('.png')}.cls", b"7")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def parquet(columns: dict[str, list[object]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def folder_of_tars(files: Files, path: Path) -> list[str]:
    (path / "shards").mkdir()
    (path / "shards/b.tar").write_bytes(tar(files))
    return [f"b.tar/{name}" for name in files]


def one_tar(files: Files, path: Path) -> list[str]:
    (path / "a.tar.gz").write_bytes(tar(files, "w:gz"))
    return [f"{path}/a.tar.gz/{name}" for name in files]


def list_of_paths(files: Files, path: Path) -> list[str]:
    names = [f"crops/{name}" for name in files]
    (path / "list.txt").write_text("\n".join(names) + "\r\n\n")
    return names


def table_of_bytes(files: Files, path: Path) -> list[str]:
    content = parquet({"id": list(range(len(files))), "image": list(files.values())})
    (path / "table.parquet").write_bytes(content)
    return [str(index) for index in range(len(files))]


def table_of_structs(files: Files, path: Path) -> list[str]:
    images: list[object] = [{"bytes": content, "path": None} for content in files.values()]
    (path / "table.parquet").write_bytes(parquet({"id": list(files), "image": images}))
    return list(files)


def table_of_paths(files: Files, path: Path) -> list[str]:
    names = [f"crops/{name}" for name in files]
    (path / "table.parquet").write_bytes(parquet({"path": list(names)}))
    return names


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (folder_of_tars, "shards"),
        (one_tar, "a.tar.gz"),
        (folder_of_tars, "shards/*.tar"),
        (list_of_paths, "list.txt"),
        (table_of_bytes, "table.parquet"),
        (table_of_structs, "table.parquet"),
        (table_of_paths, "table.parquet"),
        (lambda files, path: list(files), "crops"),
        (lambda files, path: list(files)[:10], "crops/*.png"),
        (lambda files, path: [f"{path}/crops/003.png"], "crops/003.png"),
    ],
)
def test_a_source_gives_its_crops_in_order(
    make: Callable[[Files, Path], list[str]], source: str, files: Files, folder: Path, crops: Crops
) -> None:
    ids = make(files, folder.parent)
    opened = open_source([str(folder.parent / source)])
    decoded = decode(list(opened.items()))
    assert decoded.ids == ids
    assert not any(decoded.errors)
    first = 3 if len(ids) == 1 else 0
    np.testing.assert_array_equal(decoded.crops, crops[first : first + len(ids)])
    assert opened.count() in (len(ids), None)


@pytest.fixture
def memory(files: Files) -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    for name, content in files.items():
        filesystem.pipe(f"/bucket/crops/{name}", content)
    filesystem.pipe("/bucket/a.tar", tar(files))
    filesystem.pipe("/bucket/table.parquet", parquet({"id": list(files), "bytes": list(files.values())}))
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("crops", ""),
        ("crops/", ""),
        ("*.tar", "a.tar/"),
        ("table.parquet", ""),
        ("a.tar", "memory://bucket/a.tar/"),
    ],
)
def test_a_bucket_is_read_as_a_folder_is(
    source: str, prefix: str, files: Files, memory: str, crops: Crops
) -> None:
    decoded = decode(list(open_source([f"{memory}/{source}"]).items()))
    assert decoded.ids == [prefix + name for name in files]
    np.testing.assert_array_equal(decoded.crops, crops[: len(files)])


def test_a_file_that_cannot_be_read_fails_alone_and_says_why(folder: Path, crops: Crops) -> None:
    (folder / "000.png").write_bytes(b"")
    (folder / "001.png").write_bytes((folder / "002.png").read_bytes()[:500])
    (folder / "002.png").unlink()
    (folder / "002.png").symlink_to("nowhere")
    (folder / "003.png").unlink()
    (folder / "003.png").symlink_to("003.png")
    decoded = decode(list(open_source([str(folder)]).items()))
    for error, told in zip(
        decoded.errors, ("it is empty", "truncated", "No such file", "Too many levels"), strict=False
    ):
        assert told in str(error)
    assert decoded.errors[4:] == [None] * 16
    np.testing.assert_array_equal(decoded.crops, crops[4:20])


def test_a_damaged_tar_file_gives_the_crops_before_the_damage(files: Files, tmp_path: Path) -> None:
    whole = tar(files)
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    *good, last = open_source([str(tmp_path)]).items()
    assert [item.id for item in good] == [f"a.tar/{name}" for name in files][: len(good)]
    assert len(good) in (9, 10)
    assert (last.id, last.error) == ("a.tar", "a.tar cannot be read to its end: unexpected end of data.")


def test_files_over_http_fail_alone_when_they_are_missing(files: Files, tmp_path: Path, crops: Crops) -> None:
    names = list(files)
    with FileServer({f"/{name}": content for name, content in files.items()}) as server:
        urls = [f"{server.url}/{name}" for name in (*names[:3], "missing.png")]
        (tmp_path / "list.txt").write_text("\n".join(urls))
        items = list(open_source([str(tmp_path / "list.txt")]).items())
        decoded = decode(items)
    assert decoded.errors[:3] == [None] * 3
    assert "missing.png cannot be read as an image" in str(decoded.errors[3])
    np.testing.assert_array_equal(decoded.crops, crops[:3])
    with pytest.raises(
        SourceUnavailableError, match=r"000\.png cannot be read now: .*run the same command again"
    ):
        decode(items)


def test_a_server_that_gives_whole_files_only_is_named(files: Files) -> None:
    with FileServer({"/a.tar": tar(files)}) as server, pytest.raises(ImageFileError, match="read in pieces"):
        list(open_source([f"{server.url}/a.tar"]).items())


def test_what_is_not_there_or_not_a_source_is_refused(folder: Path, memory: str) -> None:
    (folder / "odd.parquet").write_bytes(parquet({"name": ["a"]}))
    (folder / "text.parquet").write_text("no Parquet")
    for source, error, told in (
        ("absent", ImageFileError, "There is no file or folder"),
        ("*.tar", ImageFileError, r"There is no file .*\*\.tar"),
        ("odd.parquet", InputError, "has the columns name; expected id, and one of"),
        ("text.parquet", ImageFileError, "cannot be read as Parquet"),
    ):
        with pytest.raises(error, match=told):
            list(open_source([str(folder / source)]).items())
    with pytest.raises(ImageFileError, match="There is no file or folder memory://"):
        open_source([f"{memory}/absent"])
    with pytest.raises(MissingExtraError, match=r"gs://bucket/x cannot be read: .*gcsfs"):
        open_source(["gs://bucket/x"])
