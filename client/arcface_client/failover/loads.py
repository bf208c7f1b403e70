"""Whether a server has loaded a version anew, which its list of models need not show."""

from __future__ import annotations

import threading


class Loads:
    """Tells by Triton's count of requests that a version has served, which begins at 0 with every load.

    A count that is less than at the last look tells of a reload. Since traffic may overtake it until the
    next look, it also has to be as much more as was answered here in between. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._look = 0
        self._least = 0

    def begin(self) -> int:
        """A call begins; to be given to ``answered``."""
        return self._look

    def answered(self, requests: int, begun: int) -> None:
        """Note requests of a call; of one that began before the last look, some may be counted already."""
        with self._lock:
            if begun == self._look:
                self._least += requests

    @property
    def least(self) -> int:
        """What the server must have counted, unless it has loaded the version anew."""
        return self._least

    def seen(self, count: int) -> None:
        """Take the server's count, to compare the next one with."""
        with self._lock:
            self._look += 1
            self._least = count
