"""Files that survive a crash: locks, flushing, replacing by one rename."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file that is full."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a file, which is made if it is missing; it ends with the process at the latest.

    Raises:
        OSError: The file cannot be opened, or another process has the lock and ``wait`` is false.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Write a file or a folder from the system's cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, *, via: Path) -> None:
    """Replace a file by one rename; ``via`` is a folder of the same file system for the new one."""
    temporary = via / "replacement"
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)
