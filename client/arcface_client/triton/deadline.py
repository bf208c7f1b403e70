"""One deadline for a call that makes many requests."""

from __future__ import annotations

import concurrent.futures
import math
import threading
import time
from concurrent.futures import Future
from numbers import Real
from typing import Final, TypeVar

from ..errors import ArcFaceError, CallCancelledError, DeadlineExceededError, InputError, detached

T = TypeVar("T")

_LONGEST_S: Final = 1e9
"""Thirty years; arithmetic fails with far longer ones."""


class Deadline:
    """A moment until which everything that a call does must have ended.

    Args:
        timeout_s: Seconds from now; None is no limit.

    Raises:
        InputError: The timeout is not a positive number.
    """

    def __init__(self, timeout_s: float | None) -> None:
        is_number = isinstance(timeout_s, Real) and not isinstance(timeout_s, bool)
        if timeout_s is not None and not (is_number and timeout_s > 0):
            raise InputError(f"timeout_s is {timeout_s!r}; expected a number of seconds above 0, or None.")
        self.timeout_s = math.inf if timeout_s is None else min(timeout_s, _LONGEST_S)
        self._end = time.monotonic() + self.timeout_s
        self._is_cancelled = False

    def cancel(self) -> None:
        """Let the call end as soon as it can: nobody waits for it any more."""
        self._is_cancelled = True

    def remaining_s(self, at_most: float = math.inf) -> float:
        """Seconds that the next request may take.

        Args:
            at_most: A limit of the request's own, in seconds.

        Raises:
            DeadlineExceededError: The time is up.
            CallCancelledError: Nobody waits any more.
        """
        if self._is_cancelled:
            raise CallCancelledError("The call was cancelled.")
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceededError(f"{self.spent_text}.")
        return min(remaining, at_most)

    def result_of(self, future: Future[T]) -> T:
        """Wait for what a future gives.

        Raises:
            DeadlineExceededError: The time is up.
            BaseException: The future's error; an ``ArcFaceError`` each time anew, since the traceback, which
                keeps what the callers hold, would else stay with the future.
        """
        while not concurrent.futures.wait([future], self.remaining_s(threading.TIMEOUT_MAX)).done:
            pass  # remaining_s ends the wait
        error = future.exception()
        if error is not None:
            raise detached(error) if isinstance(error, ArcFaceError) else error
        return future.result()

    @property
    def spent_text(self) -> str:
        """That the time is up, in words."""
        return f"The time allowed for the whole call, {self.timeout_s:g} s, is over"

    def is_over(self, margin_s: float = 0.0) -> bool:
        """Whether the time is up, or will be in as many seconds."""
        return self._end - time.monotonic() <= margin_s
