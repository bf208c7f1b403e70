"""Regions of system shared memory, and which process each of them belongs to."""

from __future__ import annotations

import hashlib
import mmap
import os
import uuid
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from .contract import CROP_BYTES, CROP_SHAPE, EMBEDDING_DIM, Crops, Embeddings

FOLDER: Final = Path("/dev/shm")
"""Where shm_open looks on Linux; a machine without it has nothing to share."""

ROW_BYTES: Final = CROP_BYTES + EMBEDDING_DIM * 4
"""A crop and its embedding."""

_PREFIX: Final = "arcface-client"


def is_available() -> bool:
    """Whether this machine has such memory, and locks; Windows has neither."""
    return FOLDER.is_dir() and find_spec("fcntl") is not None


class Region:
    """Memory for one request: crops, and behind them their embeddings.

    Args:
        name: Its name, for the server too.
        capacity: How many crops it holds.

    Raises:
        OSError: There is no such memory, or no room left in it.
    """

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.size = capacity * ROW_BYTES
        self.output_offset = capacity * CROP_BYTES
        self._path = FOLDER / name
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Now, and not by a signal that kills the process when a page turns out not to be there.
            os.posix_fallocate(descriptor, 0, self.size)
            memory = mmap.mmap(descriptor, self.size)
        except OSError:
            self.unlink()
            raise
        finally:
            os.close(descriptor)
        # The arrays hold the mapping: it goes with the last of them.
        crops = np.frombuffer(memory, np.uint8, self.output_offset)
        embeddings = np.frombuffer(memory, np.float32, offset=self.output_offset)
        self._crops: Crops = crops.reshape(-1, *CROP_SHAPE)
        self._embeddings: Embeddings = embeddings.reshape(-1, EMBEDDING_DIM)

    def unlink(self) -> None:
        """Take the name away; a process that has opened it keeps the memory."""
        self._path.unlink(missing_ok=True)

    def put(self, crops: Crops) -> None:
        """Write the crops of a request."""
        self._crops[: len(crops)] = crops
        self._embeddings[: len(crops)] = np.nan

    def take(self, count: int) -> Embeddings:
        """Read the embeddings of a request, float32 [count, 512]; NaN where the server wrote none."""
        return self._embeddings[:count].copy()


class Owner:
    """Names regions so that another process can tell when they are nobody's any more.

    It holds a lock on an empty file, which the kernel takes back from a process that is killed. Whoever
    shares memory with the same server sees that file, in whichever container.

    Args:
        url: The server that the regions are for.

    Raises:
        OSError: There is no such folder.
    """

    def __init__(self, url: str) -> None:
        import fcntl  # which Windows lacks, as it lacks the folder

        self._name = f"{_names_for(url)}-{uuid.uuid4().hex}"
        self._path = FOLDER / f"{self._name}.lock"
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        # Of one that nobody closed, the lock goes with it, and the next owner clears up.
        self._unlock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise

    def region(self, capacity: int) -> Region:
        """Make a region under a new name."""
        return Region(f"{self._name}-{uuid.uuid4().hex[:8]}", capacity)

    def close(self) -> None:
        """Have no regions any more."""
        self._path.unlink(missing_ok=True)
        self._unlock()


def dead_owners(url: str) -> Iterator[str]:
    """The names of a server's owners whose process was killed; those of their regions begin with them.

    Its file goes with the next step, so that this is done again if the caller fails.
    """
    import fcntl

    for path in FOLDER.glob(f"{_names_for(url)}-*.lock"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            continue  # gone meanwhile, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path.stem
            path.unlink(missing_ok=True)
        except BlockingIOError:
            continue  # it lives
        finally:
            os.close(descriptor)


def _names_for(url: str) -> str:
    """What the names of a server's owners begin with."""
    return f"{_PREFIX}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
