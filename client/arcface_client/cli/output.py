"""Files that a command is told to write: whole, or not at all."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..contract import Embeddings
from ..errors import InputError


def check_output(path: Path) -> None:
    """Check that a file can be written, before the work that it is to hold.

    Raises:
        InputError: There is no folder to write to, or nothing can be written to it, or something else has
            the file's name.
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to; make it first.")
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
        file.write(text.encode(errors="backslashreplace"))  # a path may hold bytes that are not UTF-8


@contextmanager
def embedding_archive(path: Path, **texts: str) -> Iterator[Callable[[list[str], Embeddings], None]]:
    """Collect embeddings and the names of their crops, and write them whole or not at all.

    ``np.load(path)`` then has ``embeddings``, float32 [N, D], ``paths``, N strings, and the texts.

    Args:
        path: The file to write; it is replaced when the ``with`` block ends without an error.
        texts: What else it holds: strings by their names.

    Yields:
        A function that appends a batch: the names, and a row of float32 [N, D] for each.

    Raises:
        InputError: There is no folder to write to, or the disk is full.
    """
    check_output(path)
    names: list[str] = []
    dim = 0
    # The rows wait in a file, so that memory does not grow with them. It is beside the result, so that the
    # disk which must hold the result is the one that fills up.
    with naming(path), tempfile.TemporaryFile(dir=path.resolve().parent) as rows:

        def add(batch: list[str], embeddings: Embeddings) -> None:
            nonlocal dim
            dim = embeddings.shape[1]
            names.extend(batch)
            rows.write(embeddings.astype("<f4", copy=False).tobytes())

        yield add
        rows.seek(0)
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), dim)}
                np.lib.format.write_array_header_1_0(entry, header)  # type: ignore[no-untyped-call]
                shutil.copyfileobj(rows, entry)
            for name, text in {"paths": names, **texts}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.array(text, np.str_))  # type: ignore[no-untyped-call]
