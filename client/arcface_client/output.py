"""A file that a command is told to write."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .errors import InputError


def check_output(path: Path) -> None:
    """Check that a file can be written, before the work that it is to hold.

    Raises:
        InputError: There is no folder to write to, or something else has its name.
    """
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to; make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file; give the name of a file to write.")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is the old one, or none, until the new one is whole.

    Raises:
        InputError: The disk is full, or the folder cannot be written to.
    """
    path = path.resolve()  # a link stays, and what it points to is written
    part = path.with_name(f".{path.name}.part")
    try:
        # A path may hold bytes that are no UTF-8, which Python keeps as halves of characters.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):  # a folder that nothing can be written to
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{path} cannot be written: {error.strerror}. What was there before is kept."
        ) from error
