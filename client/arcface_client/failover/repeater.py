"""Does something again and again in the background."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Repeater:
    """A daemon thread that waits, does something, and waits again.

    It ends when it is closed, or when the object whose method it calls is gone, as that of an embedder that
    nobody closed: it does not keep that object alive, except while it calls it.

    Args:
        action: The method to call. Its errors are logged and end nothing.
        interval_s: Seconds to wait before each call.
        name: The thread's name.
    """

    def __init__(self, action: Callable[[], None], interval_s: float, name: str) -> None:
        self._action = weakref.WeakMethod(action)
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Have the thread end after what it is just doing."""
        self._ended.set()

    def close(self, timeout_s: float) -> None:
        """End the thread after what it is just doing, and wait for that."""
        self.end()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _repeat(self) -> None:
        while not self._ended.wait(self._interval_s):
            action = self._action()
            if action is None:
                return
            try:
                action()
            except Exception:  # noqa: BLE001 - the thread's outermost edge
                # Nobody else would hear of it, and the embedder would go on with what it knew last.
                _log.exception("%s failed; it goes on", self._thread.name)
            del action
