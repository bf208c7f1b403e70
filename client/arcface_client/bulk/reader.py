"""Reads and decodes in processes ahead of the embedder, into memory that they share with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final

import numpy as np

from ..contract import CROP_BYTES, CROP_SHAPE, Crops
from ..errors import DeploymentError
from .decode import Decoded, decode
from .source import Item

CHUNK: Final = 128
"""Crops that a process reads at a time, and that the embedder gets in one call: 4.6 MiB."""

MOST_WORKERS: Final = 8
"""Processes that read unless it is said otherwise: they decode more than one embedder takes."""

_SHARED: Final = Path("/dev/shm")
"""Where Linux has shared memory. A container has 64 MiB of it unless it is told otherwise."""


class Reader:
    """Reads items ahead of the embedder, in order; ``slots`` chunks at most are read, waiting, or in use.

    Args:
        workers: Processes; 0 reads in this one.
        in_use: Chunks that are with the embedder at a time.
        resize: Scale images of another size instead of refusing them.

    Raises:
        DeploymentError: There is not enough shared memory.
    """

    def __init__(self, workers: int, *, in_use: int, resize: bool = False) -> None:
        self._resize = resize
        slots = in_use + max(2 * workers, 1)
        if workers:
            slots = min(slots, _shared_slots(in_use + workers))
            self._memory = SharedMemory(create=True, size=slots * CHUNK * CROP_BYTES)
            # Not forked: gRPC's threads would be missing in the copy.
            self._pool: ProcessPoolExecutor | None = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _begin, (self._memory.name, slots)
            )
            self._slots = _view(self._memory, slots)
        else:
            self._pool = None
            self._slots = np.empty((slots, CHUNK, *CROP_SHAPE), np.uint8)
        self._free = deque(range(slots))

    def close(self) -> None:
        """End the processes; what they have not begun is left out."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._memory.unlink()

    def read(self, items: Iterable[Item]) -> Iterator[tuple[Decoded, int]]:
        """Yield the items in chunks, in their order, each with its slot, which ``free`` gives back.

        Raises:
            SourceUnavailableError: The disk or the server of the source cannot be read.
            DeploymentError: A process that reads was ended.
        """
        source = iter(items)
        under_way: deque[tuple[int, Future[Decoded]]] = deque()
        while True:
            try:
                while self._free and (some := list(islice(source, CHUNK))):
                    slot = self._free.popleft()
                    under_way.append((slot, self._start(slot, some)))
                    if self._pool is None:
                        break
                if not under_way:
                    return
                slot, reading = under_way.popleft()
                decoded = reading.result()
            except BrokenProcessPool as error:
                raise DeploymentError(
                    "A process that reads crops was killed, perhaps because memory ran out. What was "
                    "embedded before is kept; run the same command again, perhaps with fewer --workers."
                ) from error
            good = sum(error is None for error in decoded.errors)
            yield Decoded(decoded.ids, self._slots[slot][:good], decoded.errors), slot

    def free(self, slot: int) -> None:
        """Give a chunk's slot back."""
        self._free.append(slot)

    def _start(self, slot: int, items: list[Item]) -> Future[Decoded]:
        if self._pool is not None:
            return self._pool.submit(_decode, slot, items, self._resize)
        done: Future[Decoded] = Future()
        done.set_result(decode(items, resize=self._resize, into=self._slots[slot]))
        return done


def _shared_slots(least: int) -> int:
    """How many chunks the shared memory has room for.

    Raises:
        DeploymentError: There are fewer than ``least``.
    """
    if not _SHARED.is_dir():
        return sys.maxsize
    status = os.statvfs(_SHARED)
    free = status.f_bavail * status.f_frsize
    slots = free // (CHUNK * CROP_BYTES)
    if slots < least:
        raise DeploymentError(
            f"{_SHARED} has {free >> 20} MiB free; the processes that read share at least "
            f"{least * CHUNK * CROP_BYTES >> 20} MiB. Give the container more (docker run --shm-size=1g), or "
            "use fewer --workers."
        )
    return slots


def _view(memory: SharedMemory, slots: int) -> Crops:
    return np.ndarray((slots, CHUNK, *CROP_SHAPE), np.uint8, memory.buf)


_worker_slots: tuple[SharedMemory, Crops]
"""In a process that reads: the memory that it shares with the embedder."""


def _begin(name: str, slots: int) -> None:
    """Begin a process that reads."""
    global _worker_slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the embedder, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    memory = SharedMemory(name)
    _worker_slots = memory, _view(memory, slots)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that waits for work would outlive an embedder that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode(slot: int, items: list[Item], resize: bool) -> Decoded:
    decoded = decode(items, resize=resize, into=_worker_slots[1][slot])
    return Decoded(decoded.ids, np.empty((0, *CROP_SHAPE), np.uint8), decoded.errors)
