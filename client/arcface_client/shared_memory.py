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
from itertools import chain
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from .deadline import Deadline
from .errors import DeadlineExceededError
from .owner import Owner
from .region import ROW_BYTES, Region
from .registrations import LONGEST_CONTROL_S, Registrations, is_refusal

RETRY_S: Final = 60.0
"""How long requests go without after it did not work, in seconds."""

_PAUSE_S: Final = 0.05

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
        self._free: defaultdict[int, list[Region]] = defaultdict(list)
        self._lent: set[Region] = set()
        self._given_back: deque[tuple[Region, bool]] = deque()  # lent ones that are yet to be sorted
        self._opening: set[Region] = set()
        self._left: dict[str, int] = {}  # names that the server may still know, with their sizes
        self._owner: Owner | None = None
        self._supported = False
        self._resume_at = 0.0
        self._closed = False

    @property
    def in_use(self) -> bool:
        """Whether requests go by it now."""
        with self._lock:
            self._sort_given_back()
            return bool(self._lendable)

    def lend(self, count: int, deadline: Deadline) -> Region | None:
        """Get a region for a request, which then has to be given back.

        Args:
            count: How many crops the request has.
            deadline: Until when, where the server has to open one first.

        Returns:
            A region; None when the request has to go without.

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
                region = self._free[capacity][-1]
                self._lent.add(region)
                self._free[capacity].pop()
                return region
        return self._open(capacity, deadline)

    def give_back(self, region: Region, *, answered: bool) -> None:
        """Take a region back.

        Takes no lock, since the garbage collector may call it, in a thread that holds the lock.

        Args:
            region: What was lent.
            answered: Whether its request was. If not, the server may still write to it, or has forgotten it:
                nobody gets it again.
        """
        self._given_back.append((region, answered))

    def forget(self) -> None:
        """Lend no region again: the server is gone, and another one in its place knows none of them."""
        with self._lock:
            self._left |= {region.name: region.size for region in self._lendable}
            self._lent.clear()
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
            return bool(self._opening or self._lent or self._left)

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
                    self._left.clear()  # There is no server any more that could have kept it.
        if self.is_awaited:
            _log.info("%s keeps shared memory until another client clears up, or it ends", self._url)
        self._disown()

    def _sort_given_back(self) -> None:
        """Sort what was given back, with the lock held, by whether it may be lent again."""
        while self._given_back:
            region, answered = self._given_back.popleft()
            if region not in self._lent:
                continue  # forgotten meanwhile
            # Ctrl-C may come in between: better twice than nowhere.
            if answered:
                self._free[region.capacity].append(region)
            else:
                self._left[region.name] = region.size
            self._lent.remove(region)

    @property
    def _lendable(self) -> list[Region]:
        return [*self._lent, *chain.from_iterable(self._free.values())]

    @property
    def _bytes(self) -> int:
        """How much memory the server may have, by now or in a moment."""
        return sum(region.size for region in (*self._opening, *self._lendable)) + sum(self._left.values())

    def _open(self, capacity: int, deadline: Deadline) -> Region | None:
        try:
            self._leave(deadline)
            self._meet(deadline)
            return self._introduce(capacity, deadline)
        except (InferenceServerException, OSError, ValueError) as error:
            # gRPC raises ValueError when its channel is closed.
            self.suspend(error)
            return None

    def _meet(self, deadline: Deadline) -> None:
        """Find out, once, whether the server can do it, and have it leave what killed processes left."""
        if not self._supported:
            self._registrations.check(deadline)
            self._registrations.clear_up(deadline)
            self._supported = True

    def _introduce(self, capacity: int, deadline: Deadline) -> Region | None:
        """Make a region and have the server open it; None where there is no room for it."""
        with self._lock:
            if self._closed or self._bytes + capacity * ROW_BYTES > LARGEST_BYTES:
                return None
            self._owner = self._owner or Owner(self._url)
            region = self._owner.region(capacity)
            self._opening.add(region)
        is_open, may_be_open = False, True
        try:
            self._registrations.add(region, deadline)
            is_open = True
        except InferenceServerException as error:
            may_be_open = not is_refusal(error)
            raise
        finally:  # after Ctrl-C, too
            region.unlink()
            with self._lock:
                if is_open and not self._closed:
                    self._lent.add(region)
                elif may_be_open:
                    self._left[region.name] = region.size
                self._opening.remove(region)
        return region

    def _disown(self) -> None:
        with self._lock:
            if self._bytes:
                return  # for which another process may have to clear up
            owner, self._owner = self._owner, None
        if owner is not None:
            owner.close()

    def _leave(self, deadline: Deadline) -> None:
        """Ask the server to leave what is not lent any more; what a request still uses, it keeps for now."""
        with self._lock:
            names = tuple(self._left)
        for name in names:
            if self._registrations.remove(name, deadline):
                with self._lock:
                    self._left.pop(name, None)
