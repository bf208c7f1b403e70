"""Files that a command is told to write: whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..contract import Embeddings
from ..errors import InputError
from ..models.files import naming, replacing


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


def replace_text(path: Path, text: str) -> None:
    """Write a text as ``models.files.replacing`` does, in UTF-8."""
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
