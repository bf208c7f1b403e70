"""Locks on building something, on one machine and with one cache."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from ..repository.disk import locked
from .cache_errors import cache_errors

_log = logging.getLogger(__name__)

_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def building_lock(root: Path, name: str, what: str) -> Iterator[None]:
    """Hold a lock; it goes with the process at the latest.

    In a cache that is read-only there is none: who takes a plan from it needs none, and who builds one is
    told that it cannot be stored.

    Args:
        root: The cache's folder.
        name: The lock's.
        what: What is built, for who has to wait.

    Raises:
        CacheError: The cache cannot be written.
    """
    with ExitStack() as held:
        with cache_errors(root, "write"):
            folder = root / "locks"
            waiting = partial(_log.info, "%s is being built by another process; waiting for it.", what)
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                held.callback(os.close, locked(folder / name, tell=waiting))
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                _log.info("Nothing is locked in %s (%s).", folder, error.strerror)
        yield
