"""Where crops come from: folders, globs, lists, Parquet and tar files, here or at any URL of fsspec."""

from __future__ import annotations

import glob
import gzip
import os
import re
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

from ..errors import ArcFaceError, ImageFileError, InputError, require
from ..evaluation.images import SUFFIXES, search
from .remote import filesystem_of, is_url, source_errors

_TARS: Final = (".tar", ".tar.gz", ".tgz")
_SEARCHED: Final = SUFFIXES | {".tar", ".tgz"}
_TAR_DAMAGE: Final = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, MemoryError, OverflowError)
_PATHS: Final = "path"
_IMAGES: Final = ("image", "bytes")
_ROWS_AT_ONCE: Final = 128


@dataclass(frozen=True)
class Item:
    """One crop, before it is read.

    Attributes:
        id: What it is called in the gallery.
        data: Its bytes, or the path or URL of its file.
        error: Why it cannot be read; None if that is not known yet.
    """

    id: str
    data: str | bytes = b""
    error: str | None = None


class Place(ABC):
    """A folder, or a file of one kind."""

    @abstractmethod
    def parts(self) -> Iterator[Item | _Tar | _Table]:
        """Yield its image files, and tar and Parquet files that are read as a whole, always in one order."""

    def items(self) -> Iterator[Item]:
        """Yield its crops, always in one order."""
        for part in self.parts():
            if isinstance(part, Item):
                yield part
            else:
                yield from part.items()

    def count(self) -> int | None:
        """How many crops it has; None if that would take as long as reading them."""
        return _total(1 if isinstance(part, Item) else part.count() for part in self.parts())


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum; None as soon as one of them is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


@dataclass(frozen=True)
class Source:
    """Crops from several places; make it with ``open_source``.

    Attributes:
        names: The places, as paths without a link or "..", or as URLs.
        places: The same, to be read.
    """

    names: tuple[str, ...]
    places: tuple[Place, ...]

    def items(self) -> Iterator[Item]:
        """Yield the crops, one place after the other.

        Raises:
            ImageFileError: A folder or a list cannot be read.
            SourceUnavailableError: A server of the source is away.
        """
        for place, name in zip(self.places, self.names, strict=True):
            with source_errors(name):
                yield from place.items()

    def count(self) -> int | None:
        """How many crops there are; None if that would take as long as reading them."""
        return _total(self._counts())

    def _counts(self) -> Iterator[int | None]:
        for place, name in zip(self.places, self.names, strict=True):
            with source_errors(name):
                yield place.count()

    def shards(self, files: int) -> Iterator[Place]:
        """Yield what machines may read apart: ``files`` image files at most, or one tar or Parquet file.

        Raises:
            ImageFileError: A folder or a list cannot be read.
            SourceUnavailableError: A server of the source is away.
        """
        waiting = list[Item]()
        for place, name in zip(self.places, self.names, strict=True):
            with source_errors(name):
                for part in place.parts():
                    if isinstance(part, Item):
                        data = part.data if isinstance(part.data, bytes) else _absolute(part.data)
                        waiting.append(Item(part.id, data, part.error))
                        if len(waiting) == files:
                            yield _Items(tuple(waiting))
                            waiting.clear()
                    else:
                        yield replace(part, path=_absolute(part.path))
        if waiting:
            yield _Items(tuple(waiting))

    def is_there(self) -> bool:
        """Whether the places on this machine are still there."""
        paths = (_fixed_part(name) if glob.has_magic(name) else name for name in self.names)
        return all(is_url(path) or os.path.exists(path or ".") for path in paths)  # noqa: PTH110


def open_source(sources: Sequence[str], *, whole_paths: bool = False) -> Source:
    """Find out what the sources are; nothing is read yet.

    Args:
        sources: Each a folder (which is searched for images and tar files), a pattern with ``*``, a list of
            paths (.txt, one a line), a table (.parquet with the columns ``id``, and ``path``, ``image`` or
            ``bytes``), a tar file of images, or an image.
        whole_paths: Whether the id of a file is its path as it was given, and not below its folder.

    Raises:
        ImageFileError: A source does not exist.
        MissingExtraError: A URL or a table needs a package that is not installed.
    """
    found = [pair for source in sources for pair in _places(str(source), whole_paths)]
    return Source(tuple(name for name, _ in found), tuple(place for _, place in found))


def _places(source: str, whole_paths: bool) -> Iterator[tuple[str, Place]]:
    if is_url(source):
        filesystem, path = filesystem_of(source)
        with source_errors(source):
            if filesystem.isdir(path):
                yield source, _RemoteFolder(source, whole_paths)
            elif glob.has_magic(path):
                names = [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(path))]
                yield from _matches(filesystem.unstrip_protocol(path), names, whole_paths)
            elif filesystem.exists(path):
                yield source, _file(source, source)
            else:
                raise ImageFileError(f"There is no file or folder {source}.")
    elif os.path.isdir(source):  # noqa: PTH112
        yield os.path.realpath(source), _Folder(source, whole_paths)
    elif os.path.exists(source):  # noqa: PTH110
        yield os.path.realpath(source), _file(source, source)
    elif glob.has_magic(source):
        pattern = source if whole_paths else os.path.abspath(source)  # noqa: PTH100
        yield from _matches(pattern, sorted(glob.glob(pattern, recursive=True)), whole_paths)  # noqa: PTH207
    else:
        raise ImageFileError(f"There is no file or folder {source}.")


def _matches(pattern: str, names: Sequence[str], whole_paths: bool) -> Iterator[tuple[str, Place]]:
    if not names:
        raise ImageFileError(f"There is no file {pattern}.")
    yield pattern, _Matches(_fixed_part(pattern), tuple(names), whole_paths)


def _fixed_part(pattern: str) -> str:
    """The folder of a pattern before its first wildcard."""
    plain = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return plain[: plain.rfind("/") + 1]


def _file(path: str, id: str) -> Place:
    """A file that was named: by its suffix, else an image."""
    lower = path.lower()
    if lower.endswith(".txt"):
        return _List(path)
    if lower.endswith(".parquet"):
        return _Table(path)
    return _Tar(path, id) if lower.endswith(_TARS) else _Items((Item(id, path),))


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if is_url(path):
        filesystem, name = filesystem_of(path)
        with filesystem.open(name, "rb") as file:
            try:
                yield file
            except ArcFaceError:
                raise
            except ValueError as error:  # a server that gives whole files only
                raise ImageFileError(f"{path} cannot be read in pieces: {error}.") from error
    else:
        with open(path, "rb") as file:  # noqa: PTH123
            yield file


@dataclass(frozen=True)
class _Items(Place):
    files: tuple[Item, ...]

    def parts(self) -> Iterator[Item | _Tar | _Table]:
        yield from self.files


@dataclass(frozen=True)
class _Folder(Place):
    """A folder of this machine, at every depth; links to folders are not followed."""

    path: str
    whole_paths: bool

    def parts(self) -> Iterator[Item | _Tar | _Table]:
        start = 0 if self.whole_paths else len(os.path.join(self.path, ""))  # noqa: PTH118
        for name in search(self.path, _SEARCHED):
            yield _in_folder(name, name[start:])


@dataclass(frozen=True)
class _RemoteFolder(Place):
    url: str
    whole_paths: bool

    def parts(self) -> Iterator[Item | _Tar | _Table]:
        filesystem, root = filesystem_of(self.url)
        for folder, folders, names in filesystem.walk(root):
            folders[:] = sorted(folders)  # walk goes on in this order
            for name in sorted(names):
                if name.lower().endswith(tuple(_SEARCHED)):
                    url = filesystem.unstrip_protocol(f"{folder}/{name}")
                    below = f"{folder}/{name}"[len(root.rstrip("/")) + 1 :]
                    yield _in_folder(url, url if self.whole_paths else below)

    def count(self) -> None:
        return None


@dataclass(frozen=True)
class _Matches(Place):
    """The files that a pattern matched."""

    folder: str
    paths: tuple[str, ...]
    whole_paths: bool

    def parts(self) -> Iterator[Item | _Tar | _Table]:
        for path in self.paths:
            yield from _file(path, path if self.whole_paths else path.removeprefix(self.folder)).parts()


def _in_folder(path: str, id: str) -> Item | _Tar:
    return _Tar(path, id) if path.lower().endswith(_TARS) else Item(id, path)


@dataclass(frozen=True)
class _List(Place):
    """A text file with a path or URL on each line, relative ones below the list's folder."""

    path: str

    def parts(self) -> Iterator[Item | _Tar | _Table]:
        with _opened(self.path) as file:
            for line in file:
                text = os.fsdecode(line.rstrip(b"\r\n"))
                if text:
                    yield Item(text, _beside(self.path, text))


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100


def _beside(list_: str, path: str) -> str:
    return path if is_url(path) or path.startswith("/") else list_[: list_.rfind("/") + 1] + path


@dataclass(frozen=True)
class _Table(Place):
    """A Parquet file with a crop in each row: its id, and its path, or its image file's bytes.

    The column ``image`` may also be the struct that Hugging Face's datasets have.
    """

    path: str

    def parts(self) -> Iterator[Item | _Tar | _Table]:
        yield self

    def items(self) -> Iterator[Item]:
        with self._opened() as file:
            names = file.schema_arrow.names
            images = next((name for name in _IMAGES if name in names), None)
            data = images or _PATHS
            ids = "id" if "id" in names else _PATHS
            if not {data, ids} <= set(names) or "embedding" in names:
                raise InputError(
                    f"{self.path} has the columns {', '.join(names)}; expected id, and one of image, bytes "
                    "and path."
                )
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[*dict.fromkeys([ids, data])]):
                batch.validate(full=True)
                rows = zip(batch.column(ids).to_pylist(), batch.column(data).to_pylist(), strict=True)
                yield from (self._item(str(id), value) for id, value in rows)

    def _item(self, id: str, value: Any) -> Item:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None:
            return Item(id, error=f"{id} has no image in {self.path}.")
        return Item(id, _beside(self.path, value) if isinstance(value, str) else value)

    def count(self) -> int:
        with self._opened() as file:
            return int(file.metadata.num_rows)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        parquet = require("pyarrow.parquet", extra="bulk", purpose="Reading Parquet")
        invalid = require("pyarrow", extra="bulk", purpose="Reading Parquet").ArrowInvalid
        with _opened(self.path) as file:
            try:
                yield parquet.ParquetFile(file)
            except invalid as error:
                raise ImageFileError(f"{self.path} cannot be read as Parquet: {error}") from error


@dataclass(frozen=True)
class _Tar(Place):
    """A tar file of images, as webdataset has them; the other members are left out.

    A damaged file gives the crops before the damage, and one item that says so.
    """

    path: str
    id: str

    def parts(self) -> Iterator[Item | _Tar | _Table]:
        yield self

    def items(self) -> Iterator[Item]:
        with _opened(self.path) as file:
            try:
                # Not as a stream, and not by extractfile: that is four times as slow.
                with tarfile.open(fileobj=file, mode="r:*") as archive:
                    content: Any = archive.fileobj
                    for member in archive:
                        archive.members.clear()  # type: ignore[attr-defined]  # it keeps every one
                        if member.size < 0:  # the next one would be this one again
                            raise tarfile.ReadError("a file of negative size")
                        if member.isfile() and member.name.lower().endswith(tuple(SUFFIXES)):
                            content.seek(member.offset_data)
                            data = content.read(member.size)
                            if len(data) < member.size:
                                raise tarfile.ReadError("unexpected end of data")
                            yield Item(f"{self.id}/{member.name}", data)
            except _TAR_DAMAGE as error:
                yield Item(self.id, error=f"{self.id} cannot be read to its end: {error}.")

    def count(self) -> None:
        return None
