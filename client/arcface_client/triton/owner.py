"""Which process regions of shared memory belong to, and which of them are nobody's any more."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from .region import FOLDER, Region

REMEMBERED_S: Final = 24 * 3600.0
"""How long others leave a dead owner's lock file for the next client of its server, in seconds."""

_PREFIX: Final = "arcface-client"
_LOCK: Final = ".lock"


class Owner:
    """Names regions so that another process can tell when they are nobody's any more.

    It holds a lock on a file, which the kernel takes back from a process that is killed. Whoever shares
    memory with the same server sees that file, in whichever container.

    Args:
        url: The server that the regions are for.

    Raises:
        OSError: There is no such folder.
    """

    def __init__(self, url: str) -> None:
        import fcntl  # which Windows lacks

        self._name = f"{_names_for(url)}{uuid.uuid4().hex}"
        self._path = FOLDER / f"{self._name}{_LOCK}"
        unlocked = FOLDER / f"{self._name}-unlocked"
        descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        # Of one that nobody closed, the lock goes with it, and the next owner clears up.
        self._unlock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # By this name others look for it: it has to be locked before it has it.
            unlocked.rename(self._path)
        except OSError:
            unlocked.unlink(missing_ok=True)
            self.close()
            raise

    def region(self, capacity: int) -> Region:
        """Make a region under a new name."""
        return Region(f"{self._name}-{uuid.uuid4().hex[:8]}", capacity)

    def close(self) -> None:
        """Have no regions any more."""
        _unlink_regions(self._name)
        self._path.unlink(missing_ok=True)
        self._unlock()


def dead_owners(url: str) -> Iterator[str]:
    """Find the owners whose process was killed, and take the names of their regions away.

    Lock files of this server's go with the next step, so that this is done again if the caller fails. Those
    of other servers' stay for a while, since by them alone their next client knows what to clear up there.

    Yields:
        The names of this server's; those of their regions begin with them.
    """
    import fcntl

    for path in FOLDER.glob(f"{_PREFIX}-*{_LOCK}"):
        # It cannot be locked while its process lives, and may be gone at any time, or be another user's.
        with suppress(OSError), path.open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(lock.fileno())
            if path.name.startswith(_names_for(url)):
                _unlink_regions(path.stem)
                yield path.stem
                path.unlink(missing_ok=True)
            elif not found.st_size:
                _unlink_regions(path.stem)
                lock.write(b"dead")  # and its time is that at which it was found
            elif time.time() - found.st_mtime > REMEMBERED_S:
                path.unlink(missing_ok=True)


def _names_for(url: str) -> str:
    """What the names of a server's owners begin with."""
    return f"{_PREFIX}-{hashlib.sha256(url.encode()).hexdigest()[:8]}-"


def _unlink_regions(owner: str) -> None:
    for path in FOLDER.glob(f"{owner}-*"):
        path.unlink(missing_ok=True)
