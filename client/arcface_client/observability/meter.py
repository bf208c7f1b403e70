"""How fast calls were, from the calls themselves."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from typing import Final

_CALLS: Final = 256


class Meter:
    """Remembers the last calls. Safe to share between threads."""

    def __init__(self) -> None:
        self._calls: deque[tuple[int, float]] = deque(maxlen=_CALLS)
        self._lock = threading.Lock()

    def record(self, faces: int, seconds: float) -> None:
        """Take a call into account: how many faces it embedded, and how long that took."""
        with self._lock:
            self._calls.append((faces, seconds))

    @property
    def throughput_fps(self) -> float | None:
        """Faces a second while a call was under way; None before the first one."""
        calls = self._last()
        seconds = sum(seconds for _, seconds in calls)
        return sum(faces for faces, _ in calls) / seconds if seconds else None

    @property
    def latency_ms(self) -> float | None:
        """Median time of a call in milliseconds; None before the first one."""
        calls = self._last()
        return 1e3 * statistics.median(seconds for _, seconds in calls) if calls else None

    def _last(self) -> list[tuple[int, float]]:
        with self._lock:
            return list(self._calls)
