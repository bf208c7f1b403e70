"""System shared memory: crops and embeddings pass beside the requests to a server on the same host.

A region belongs to one request at a time, and holds its crops and then its embeddings. Whether the
server really shares it shows in every answer: the embeddings' place is filled with NaN beforehand.

- A region's name is gone from ``/dev/shm`` as soon as the server has opened it. What a process that is killed
  leaves, there and with the server, the next client of the same server clears up; see ``owner``.
- A region whose request was not answered is never used again, since the server may still write to it.
- What cannot be shared is no error: the request goes without, and it is tried again later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakSet

from tritonclient.utils import InferenceServerException

from ..errors import DeadlineExceededError
from .deadline import Deadline
from .owner import Owner
from .region import ROW_BYTES, Region
from .registrations import LONGEST_CONTROL_S, Registrations, is_refusal

RETRY_S: Final = 60.0
"""How long requests go without after it did not work, in seconds."""

_PAUSE_S: Final = 0.05
_MARGIN_S: Final = 0.02
"""gRPC may end a question this much before a call's time is up, in seconds."""

LARGEST_BYTES: Final = 256 << 20
"""How much memory one connection shares at most."""

_log = logging.getLogger(__name__)


class SharedMemory:
    """The regions that one connection shares with its server. Safe to share between threads.

    Args:
        triton: Gives tritonclient's client as it is now. Its calls must not be repeated by gRPC: a request
            that comes twice might write to a region that the next one has already.
        url: The server, for messages.
    """

    def __init__(self, triton: Callable[[], Any], url: str) -> None:
        self._url = url
        self._registrations = Registrations(triton, url)
        self._lock = threading.Lock()
        self._known: dict[str, int] = {}  # names that the server may know, with their sizes
        # Weak, so that a region that is lost, by Ctrl-C anywhere or with its request, is nobody's at once.
        self._opening: WeakSet[Region] = WeakSet()
        self._lent: WeakSet[Region] = WeakSet()
        self._given_back: deque[Region] = deque()
        self._free: defaultdict[int, list[Region]] = defaultdict(list)
        self._owner: Owner | None = None
        self._supported = False
        self._era = 0  # ends when all regions are forgotten
        self._resume_at = 0.0
        self._closed = False

    @property
    def in_use(self) -> bool:
        """Whether requests go by it now."""
        with self._lock:
            self._sort_given_back()
            return bool(self._lent or self._free_names)

    def lend(self, count: int, deadline: Deadline) -> Region | None:
        """Get a region for a request.

        Args:
            count: How many crops the request has.
            deadline: Until when, where the server has to open one first.

        Returns:
            A region, to be given back when its request is answered, and else to be dropped; None when the
            request has to go without.

        Raises:
            DeadlineExceededError: The time is up.
            CallCancelledError: Nobody waits any more.
        """
        capacity = 1 << (count - 1).bit_length()
        with self._lock:
            if self._closed or time.monotonic() < self._resume_at:
                return None
            self._sort_given_back()
            if self._free[capacity]:
                region = self._free[capacity].pop()
                self._lent.add(region)
                return region
        return self._open(capacity, deadline)

    def give_back(self, region: Region) -> None:
        """Take a region back whose request was answered.

        One whose request was not is dropped instead: the server may still write to it, or has forgotten it.
        Takes no lock, since the garbage collector may call it in a thread that holds the lock.
        """
        self._given_back.append(region)

    def forget(self) -> None:
        """Lend no region again: the server is gone, and another one in its place knows none of them."""
        with self._lock:
            self._era += 1
            self._lent = WeakSet()
            self._free.clear()
            self._supported = False

    def suspend(self, why: object) -> None:
        """Go without for a while."""
        self.forget()
        self._disown()
        with self._lock:
            if self._closed or time.monotonic() < self._resume_at:
                return
            self._resume_at = time.monotonic() + RETRY_S
        _log.info("Crops go to %s inside the requests, not by shared memory: %s", self._url, why)

    @property
    def is_awaited(self) -> bool:
        """Whether the server may be at work on a region, or keeps one that nobody needs."""
        with self._lock:
            self._sort_given_back()
            return bool(self._known.keys() - self._free_names)

    def close(self) -> None:
        """Ask the server to leave all regions, while there is still a connection to it."""
        with self._lock:
            self._closed = True
        self.forget()
        deadline = Deadline(LONGEST_CONTROL_S)
        try:
            self._leave(deadline)
            while self.is_awaited:
                time.sleep(deadline.remaining_s(_PAUSE_S))
                self._leave(deadline)
        except DeadlineExceededError:
            pass
        except (InferenceServerException, ValueError) as error:
            if is_refusal(error):
                with self._lock:
                    self._known.clear()  # There is no server any more that could have kept it.
        if self.is_awaited:
            _log.info("%s keeps shared memory until another client clears up, or it ends", self._url)
        self._disown()

    @property
    def _free_names(self) -> set[str]:
        return {region.name for free in self._free.values() for region in free}

    def _sort_given_back(self) -> None:
        """Let what was given back be lent again. Called with the lock held."""
        while self._given_back:
            region = self._given_back.popleft()
            if region in self._lent:  # and was not forgotten meanwhile
                self._lent.remove(region)
                self._free[region.capacity].append(region)

    def _open(self, capacity: int, deadline: Deadline) -> Region | None:
        try:
            self._leave(deadline)
            self._meet(deadline)
            return self._introduce(capacity, deadline)
        except (InferenceServerException, OSError, ValueError) as error:
            # gRPC raises ValueError when its channel is closed. That a call's time was up says nothing of the
            # server.
            if not deadline.is_over(_MARGIN_S):
                self.suspend(error)
            return None

    def _meet(self, deadline: Deadline) -> None:
        """Find out, once, whether the server can do it, and have it leave what killed processes left."""
        if not self._supported:
            self._registrations.check(deadline)
            self._registrations.clear_up(deadline)
            self._supported = True

    def _introduce(self, capacity: int, deadline: Deadline) -> Region | None:
        """Make a region and have the server open it; None where there is no room, or it was forgotten."""
        with self._lock:
            era = self._era
            if self._closed or sum(self._known.values()) + capacity * ROW_BYTES > LARGEST_BYTES:
                return None
            self._owner = self._owner or Owner(self._url)
            region = self._owner.region(capacity)
            self._opening.add(region)
            self._known[region.name] = region.size
        try:
            self._registrations.add(region, deadline)
            with self._lock:
                lent = era == self._era
                if lent:
                    self._lent.add(region)
        except InferenceServerException as error:
            if is_refusal(error):
                with self._lock:
                    self._known.pop(region.name, None)
            raise
        finally:
            with self._lock:
                self._opening.discard(region)
            region.unlink()
        return region if lent else None

    def _disown(self) -> None:
        with self._lock:
            if self._known:
                return  # for which another process may have to clear up
            owner, self._owner = self._owner, None
        if owner is not None:
            owner.close()

    def _leave(self, deadline: Deadline) -> None:
        """Ask the server to leave what nobody has any more; what a request still uses, it keeps for now."""
        with self._lock:
            self._sort_given_back()
            used = {region.name for region in (*self._opening, *self._lent)} | self._free_names
            names = self._known.keys() - used
        for name in names:
            if self._registrations.remove(name, deadline):
                with self._lock:
                    self._known.pop(name, None)
