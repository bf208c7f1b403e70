"""What the model repository and the cache of engines both ask of a disk."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file that is full."""


def locked(path: Path, *, wait: bool = True, tell: Callable[[], object] = lambda: None) -> int:
    """Open and lock a file; the lock goes with the descriptor, so with the process at the latest.

    Args:
        path: The file, which is made if need be.
        wait: Wait while somebody else holds the lock.
        tell: Is called before such a wait.

    Raises:
        OSError: The file cannot be opened or locked, or is locked and is not waited for.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            tell()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def flush(path: Path) -> None:
    """Have a file or a folder on the disk, not in its cache alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
