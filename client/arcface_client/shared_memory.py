"""System shared memory: crops and embeddings pass beside the requests to a server on the same host.

A region belongs to one request at a time, and holds its crops and then its embeddings. Whether the
server really shares it shows in every answer: the embeddings' place is filled with NaN beforehand.

- A region's name is gone from ``/dev/shm`` as soon as the server has opened it, so a process that is
  killed leaves none behind there. The server keeps the memory of a killed one until it ends itself.
- A region whose request was not answered is never used again, since the server may still write to it.
- What cannot be shared is no error: the request goes without, and it is tried again later.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from tritonclient.utils import InferenceServerException

from .contract import CROP_BYTES, CROP_SHAPE, EMBEDDING_DIM, Crops, Embeddings

RETRY_S: Final = 60.0
"""How long requests go without after it did not work, in seconds."""

LONGEST_CALL_S: Final = 1.0
"""How long the server may take to open or leave a region, in seconds."""

LARGEST_BYTES: Final = 256 << 20
"""How much memory one connection shares at most."""

_FOLDER: Final = Path("/dev/shm")
_PREFIX: Final = "arcface-client-"
_ROW_BYTES: Final = CROP_BYTES + EMBEDDING_DIM * 4

_EXTENSION: Final = "system_shared_memory"
_OLDEST_SERVER: Final = (2, 50)
"""Older ones crash when they have to leave a region that a request still uses."""

_IN_USE: Final = "StatusCode.INTERNAL"

_log = logging.getLogger(__name__)


class Region:
    """Memory for one request: crops, and behind them their embeddings.

    Args:
        capacity: How many crops it holds.

    Raises:
        OSError: There is no such memory, or no room left in it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = capacity * _ROW_BYTES
        self.output_offset = capacity * CROP_BYTES
        self.name = f"{_PREFIX}{uuid.uuid4().hex}"
        self._path = _FOLDER / self.name
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
        self._crops: Crops = np.frombuffer(memory, np.uint8, self.output_offset).reshape(-1, *CROP_SHAPE)
        self._embeddings: Embeddings = np.frombuffer(memory, np.float32, offset=self.output_offset).reshape(
            -1, EMBEDDING_DIM
        )

    def unlink(self) -> None:
        """Take the name away; who has opened it keeps the memory."""
        self._path.unlink(missing_ok=True)

    def put(self, crops: Crops) -> None:
        """Write the crops of a request."""
        self._crops[: len(crops)] = crops
        self._embeddings[: len(crops)] = np.nan

    def take(self, count: int) -> Embeddings:
        """Read the embeddings of a request, float32 [count, 512]; NaN where the server wrote none."""
        return self._embeddings[:count].copy()


class SharedMemory:
    """The regions that one connection shares with its server. Safe to share between threads.

    Args:
        triton: Gives tritonclient's client as it is now. Its calls must not be repeated by gRPC: a request
            that comes twice might write to a region that the next one has already.
        url: The server, for messages.
    """

    def __init__(self, triton: Callable[[], Any], url: str) -> None:
        self._triton = triton
        self._url = url
        self._lock = threading.Lock()
        self._free: defaultdict[int, list[Region]] = defaultdict(list)
        self._lent: set[Region] = set()
        self._left: dict[str, int] = {}  # names that the server may still know, with their sizes
        self._bytes = 0
        self._supported = False
        self._resume_at = 0.0
        self._closed = False

    @property
    def in_use(self) -> bool:
        """Whether requests go by it now."""
        with self._lock:
            return bool(self._lent) or any(self._free.values())

    def lend(self, count: int, timeout_s: float) -> Region | None:
        """Get a region for a request, which then has to be given back, or to be retired.

        Args:
            count: How many crops the request has.
            timeout_s: How long that may take, where the server has to open one first.

        Returns:
            A region; None when the request has to go without.
        """
        capacity = 1 << (count - 1).bit_length()
        with self._lock:
            if self._closed or time.monotonic() < self._resume_at:
                return None
            if self._free[capacity]:
                region = self._free[capacity].pop()
                self._lent.add(region)
                return region
        return self._open(capacity, min(timeout_s, LONGEST_CALL_S))

    def give_back(self, region: Region) -> None:
        """Take a region back whose request was answered."""
        with self._lock:
            if region in self._lent:
                self._lent.remove(region)
                self._free[region.capacity].append(region)

    def retire(self, region: Region) -> None:
        """Take a region back that the server may still write to, or has forgotten: nobody gets it again."""
        with self._lock:
            if region in self._lent:
                self._lent.remove(region)
                self._left[region.name] = region.size

    def forget(self) -> None:
        """Retire all regions: the server is gone, and another one in its place knows none of them."""
        with self._lock:
            regions = [*self._lent, *(region for free in self._free.values() for region in free)]
            self._left |= {region.name: region.size for region in regions}
            self._lent.clear()
            self._free.clear()
            self._supported = False

    def suspend(self, why: object) -> None:
        """Go without for a while."""
        self.forget()
        with self._lock:
            if self._closed or time.monotonic() < self._resume_at:
                return
            self._resume_at = time.monotonic() + RETRY_S
        _log.info("Crops go to %s inside the requests, not by shared memory: %s", self._url, why)

    def close(self) -> None:
        """Ask the server to leave all regions, while there is still a connection to it."""
        with self._lock:
            self._closed = True
        self.forget()
        try:
            self._leave(LONGEST_CALL_S)
        except (InferenceServerException, ValueError) as error:
            _log.info("%s may keep shared memory until it ends: %s", self._url, error)

    def _open(self, capacity: int, timeout_s: float) -> Region | None:
        size = capacity * _ROW_BYTES
        try:
            self._leave(timeout_s)
            with self._lock:
                if self._bytes + size > LARGEST_BYTES:
                    return None
                self._bytes += size
            region = self._made(capacity)
        except (InferenceServerException, OSError, ValueError) as error:
            # gRPC raises ValueError when its channel is closed.
            self.suspend(error)
            return None
        try:
            self._introduce(region, timeout_s)
        except (InferenceServerException, ValueError) as error:
            with self._lock:
                self._left[region.name] = size  # it may have been too late to say no
            self.suspend(error)
            return None
        finally:
            region.unlink()
        with self._lock:
            if self._closed:
                self._left[region.name] = size
                return None
            self._lent.add(region)
        return region

    def _made(self, capacity: int) -> Region:
        try:
            return Region(capacity)
        except OSError:
            with self._lock:
                self._bytes -= capacity * _ROW_BYTES
            raise

    def _introduce(self, region: Region, timeout_s: float) -> None:
        triton = self._triton()
        if not self._supported:
            check_server(triton.get_server_metadata(client_timeout=timeout_s))
            self._supported = True
        triton.register_system_shared_memory(
            region.name, f"/{region.name}", region.size, client_timeout=timeout_s
        )

    def _leave(self, timeout_s: float) -> None:
        """Ask the server to leave what was retired; what a request still uses, it keeps until asked again."""
        with self._lock:
            left = dict(self._left)
        for name, size in left.items():
            try:
                self._triton().unregister_system_shared_memory(name, client_timeout=timeout_s)
            except InferenceServerException as error:
                if error.status() == _IN_USE:
                    continue
                raise
            with self._lock:
                if self._left.pop(name, None) is not None:
                    self._bytes -= size


def check_server(metadata: Any) -> None:
    """Raise ValueError for a server that cannot do it, or not safely."""
    if _EXTENSION not in metadata.extensions:
        raise ValueError(f"Triton {metadata.version} has no extension {_EXTENSION}")
    version = re.match(r"(\d+)\.(\d+)", metadata.version)
    if version is None or tuple(map(int, version.groups())) < _OLDEST_SERVER:
        oldest = ".".join(map(str, _OLDEST_SERVER))
        raise ValueError(f"Triton {metadata.version} does not do it safely; {oldest} and newer do")
