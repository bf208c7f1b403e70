"""Files on this machine: the home directory, the cache folder, SHA-256, files that appear whole."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import ConfigError, InputError

STAGED: Final = ".part"
"""How the name of a file ends that is being written, and of one that a process which was killed left half."""

_CHUNK_BYTES: Final = 1 << 20


def expanded(path: Path) -> Path:
    """A path with the home directory in place of ``~``.

    Raises:
        ConfigError: There is no such home directory, as in many containers.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"There is no home directory for {path}; set HOME, or name another folder "
            "(ARCFACE_CACHE_DIR for the cache)."
        ) from error


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for plans and downloads: ``$ARCFACE_CACHE_DIR``, ``$XDG_CACHE_HOME`` or ``~/.cache``.

    In the last two it is the folder ``arcface-triton``.

    Raises:
        ConfigError: There is no home directory, and no variable names another folder.
    """
    if configured := environment.get("ARCFACE_CACHE_DIR"):
        return expanded(Path(configured))
    return Path(environment.get("XDG_CACHE_HOME") or expanded(Path("~/.cache"))) / "arcface-triton"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal digits; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


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
    part = path.with_name(f".{secrets.token_hex(8)}{STAGED}")  # each writer has its own
    with naming(path):
        try:
            with part.open("xb") as file:
                if path.exists():
                    shutil.copymode(path, part)
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a crash of the machine may leave an empty file of this name
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
