"""Regions of system shared memory: a name in a folder, until the server has opened it, and the memory."""

from __future__ import annotations

import mmap
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from ..contract import CROP_BYTES, CROP_SHAPE, EMBEDDING_DIM, Crops, Embeddings

FOLDER: Final = Path("/dev/shm")
"""Where shm_open looks on Linux; a machine without it has nothing to share."""

ROW_BYTES: Final = CROP_BYTES + EMBEDDING_DIM * 4
"""A crop and its embedding."""


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
