"""The folder of a gallery's parts: what is there, who writes to it, and the next part."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import InputError
from ..gallery import Gallery, GalleryInfo, open_gallery, write_gallery
from ..models.files import STAGED, naming
from .ids import IdSet
from .rows import Rows

PART_S: Final = 60.0
"""A part is written after so many seconds even when it is not full: a crash costs no more than that."""

_JOINED: Final = ".joined"


class Parts:
    """A folder of parts, each of which appears whole. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, keep other processes out, and remove what a process that was killed left half.

        Raises:
            InputError: Another process writes to it, or it cannot be made.
        """
        with naming(self.folder):
            self.folder.mkdir(exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY)  # Windows refuses
        import fcntl  # Windows has none

        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"Another process is writing to {self.folder}; wait for it, or give another --output."
                ) from error
            except OSError:  # a file system without locks
                pass
            for half in (*self.folder.glob(f".*{STAGED}"), self.folder / _JOINED):
                half.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)

    def files(self) -> list[Path]:
        """The parts, in order."""
        return sorted(self.folder.glob("*.parquet")) if self.folder.is_dir() else []

    def known(self) -> IdSet:
        """The ids of all rows."""
        return IdSet(ids for file in self.files() for ids in open_gallery(file).ids())

    def next(self) -> Path:
        """The name of the next part."""
        last = [file.stem.rpartition("-")[2] for file in self.files()][-1:]
        number = int(last[0]) + 1 if last and last[0].isdecimal() else len(self.files())
        return self.folder / f"part-{number:06}.parquet"

    def join(self, output: Path, info: GalleryInfo) -> None:
        """Make one file of the parts, which then are removed; the disk holds both for a moment."""
        tables = (table for file in self.files() for table in open_gallery(file).tables())
        write_gallery(self.folder / _JOINED, info, tables)
        with naming(output):
            (self.folder / _JOINED).replace(output)
            self.clear()
            self.folder.rmdir()

    def clear(self) -> None:
        """Remove all parts."""
        for file in self.files():
            file.unlink()


def drop_failed(gallery: Gallery, into: Path) -> None:
    """Write a gallery's rows that have an embedding, or remove the file if there are none."""
    kept = (table.filter(table["error"].is_null()) for table in gallery.tables())
    if not write_gallery(into, gallery.info, kept):
        into.unlink()


class PartWriter:
    """Collects rows, and writes them as parts in a thread of its own; ``close`` it also after an error."""

    def __init__(self, parts: Parts, info: GalleryInfo, part_rows: int) -> None:
        self._parts, self._info, self._part_rows = parts, info, part_rows
        self._rows = list[Rows]()
        self._count = 0
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[int] | None = None

    def add(self, rows: Rows) -> None:
        """Add rows; raises InputError if an earlier part could not be written."""
        self._rows.append(rows)
        self._count += len(rows.ids)
        if self._count >= self._part_rows or time.monotonic() - self._since >= PART_S:
            self._write()

    def _write(self) -> None:
        self._wait()
        tables = [rows.table(self._info) for rows in self._rows]
        if tables:
            self._writing = self._thread.submit(write_gallery, self._parts.next(), self._info, tables)
        self._rows, self._count, self._since = [], 0, time.monotonic()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Write the rows that wait; raises InputError if a part cannot be written."""
        with self._thread:
            self._write()
            self._wait()
