"""URLs of fsspec, and what is raised when their servers are away."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..errors import MissingExtraError, SourceUnavailableError, require

_OF_ONE_FILE: Final = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)

_LIBRARIES: Final = (
    ("aiohttp", "ClientError"),
    ("asyncio.exceptions", "TimeoutError"),
    ("botocore.exceptions", "BotoCoreError"),
)
"""The errors of file systems that are not OSErrors; they are loaded if one can be raised."""


def is_url(path: str) -> bool:
    """Whether a path is a URL of fsspec, for example "s3://bucket/crops/"."""
    return "://" in path


def filesystem_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Raises:
        MissingExtraError: fsspec, or what it needs for such a URL, is not installed.
    """
    core = require("fsspec.core", extra="bulk", purpose=f"Reading {url}")
    try:
        filesystem, path = core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"{url} cannot be read: {error}") from error
    return filesystem, path


def is_of_one_file(error: BaseException) -> bool:
    """Whether an error says something of one file, and not of the disk or the server that has it."""
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return True
    return isinstance(error, OSError) and error.errno in _OF_ONE_FILE


@contextmanager
def source_errors(name: str) -> Iterator[None]:
    """Turn the errors of file systems into this project's.

    Raises:
        SourceUnavailableError: The source cannot be read now.
    """
    try:
        yield
    except _errors() as error:
        raise unavailable(name, error) from error


def unavailable(name: str, error: BaseException) -> SourceUnavailableError:
    """The error for a source that cannot be read now."""
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SourceUnavailableError(
        f"{name} cannot be read now: {why}. What was embedded before is kept; run the same command again."
    )


def _errors() -> tuple[type[BaseException], ...]:
    loaded = [(sys.modules.get(module), name) for module, name in _LIBRARIES]
    return (OSError, *(getattr(module, name) for module, name in loaded if module))
