"""A file that a command is told to write."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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
        raise InputError(f"{path} is no regular file; give the name of a file to write.")
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
        # A path may hold bytes that are no UTF-8, which Python keeps as halves of characters.
        file.write(text.encode(errors="backslashreplace"))
