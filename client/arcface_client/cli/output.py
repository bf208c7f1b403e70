"""Files that a command is told to write: whole, or not at all."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from ..contract import EMBEDDING_DIM, Embeddings
from ..errors import InputError


def check_output(path: Path) -> None:
    """Check that a file can be written, before the work that it is to hold.

    Raises:
        InputError: There is no folder to write to, or nothing can be written to it, or something else has
            the file's name.
    """
    if str(path) == "-":
        raise InputError("- is not standard output here; give the name of a file to write.")
    path = path.resolve()
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to; make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; give the name of a file to write.")
    with naming(path), tempfile.TemporaryFile(dir=path.parent):
        pass


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of writing name the file that it is about, not a temporary one or none.

    Raises:
        InputError: The disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}. What was there before is kept."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that it is the old one, or none, until the new one is whole.

    Yields:
        What to write to. It takes the file's place when the block ends without an error.

    Raises:
        InputError: The disk is full, or the folder cannot be written to.
    """
    path = path.resolve()  # a link stays, and what it points to is written
    part = path.with_name(f".{secrets.token_hex(8)}.part")  # each writer has its own
    with naming(path):
        try:
            with part.open("xb") as file:
                if path.exists():
                    shutil.copymode(path, part)
                yield file
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text as ``replacing`` does, in UTF-8."""
    with replacing(path) as file:
        # A path may hold bytes that are not UTF-8, which Python keeps as halves of characters.
        file.write(text.encode(errors="backslashreplace"))


class EmbeddingArchive:
    """Collects embeddings and the names of their crops, and writes ``path`` whole or not at all.

    ``np.load(path)`` then has ``embeddings``, float32 [N, 512], and ``paths``, N strings.

    Args:
        path: The file to write; it is replaced when the ``with`` block ends without an error.

    Raises:
        InputError: There is no folder to write to; the methods raise it when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()  # a link stays, and what it points to is written
        self._path = path
        self._names: list[str] = []
        check_output(path)

    def __enter__(self) -> EmbeddingArchive:
        # Beside the result, so that the disk which must hold the result is the one that fills up.
        with naming(self._path):
            self._rows = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def add(self, names: list[str], embeddings: Embeddings) -> None:
        """Append a batch: one name for each row of float32 [N, 512]."""
        self._names += names
        with naming(self._path):
            self._rows.write(embeddings.astype("<f4", copy=False).tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self._path), self._rows:
            if kind is None:
                self._rows.flush()
                self._write()

    def _write(self) -> None:
        with replacing(self._path) as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(self._names), EMBEDDING_DIM)}
                np.lib.format.write_array_header_1_0(entry, header)  # type: ignore[no-untyped-call]
                self._rows.seek(0)
                shutil.copyfileobj(self._rows, entry)
            with archive.open("paths.npy", "w", force_zip64=True) as entry:
                names = np.array(self._names, np.str_)
                np.lib.format.write_array(entry, names)  # type: ignore[no-untyped-call]
