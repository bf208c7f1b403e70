"""Keeps what happens at every call from filling the log."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable


class Throttle:
    """Lets the same thing pass once in a while. Safe to share between threads.

    Args:
        interval_s: Seconds in which it passes once at most.
        clock: Seconds, monotonic.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._passed_at: dict[Hashable, float] = {}

    def passes(self, thing: Hashable) -> bool:
        """Whether it passes now; there should be few different ones, since each is remembered."""
        now = self._clock()
        with self._lock:
            if now - self._passed_at.get(thing, -math.inf) < self._interval_s:
                return False
            self._passed_at[thing] = now
        return True
