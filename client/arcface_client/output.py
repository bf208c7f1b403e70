"""A file that a command is told to write."""

from __future__ import annotations

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
