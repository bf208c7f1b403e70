"""One call's work and its deadline, which several replicas may share."""

from __future__ import annotations

import concurrent.futures
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from numbers import Real
from typing import Final, TypeVar

import numpy as np

from ..contract import Crops, Embeddings
from ..errors import (
    ArcFaceError,
    CallCancelledError,
    DeadlineExceededError,
    InputError,
    NotFiniteError,
    OtherEmbeddingSpaceError,
    detached,
)

T = TypeVar("T")

_LONGEST_S: Final = 1e9
"""Thirty years; arithmetic fails with far longer times."""


class Deadline:
    """The moment at which a whole call must have ended, however many requests it makes.

    Args:
        timeout_s: Seconds from now; None for no limit.

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
        """End the call as soon as possible: its caller has gone."""
        self._is_cancelled = True

    def remaining_s(self, at_most: float = math.inf) -> float:
        """Seconds that the next request may take.

        Args:
            at_most: The request's own limit, in seconds.

        Raises:
            DeadlineExceededError: The time is up.
            CallCancelledError: The call was cancelled.
        """
        if self._is_cancelled:
            raise CallCancelledError("The call was cancelled.")
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceededError(f"{self.spent_text}.")
        return min(remaining, at_most)

    def result_of(self, future: Future[T]) -> T:
        """Wait for the result of a future.

        Raises:
            DeadlineExceededError: The time is up.
            BaseException: The future's error. An ``ArcFaceError`` is copied: its traceback would stay with
                the future and keep the callers' variables alive.
        """
        while not concurrent.futures.wait([future], self.remaining_s(threading.TIMEOUT_MAX)).done:
            pass  # remaining_s ends the wait
        error = future.exception()
        if error is not None:
            raise detached(error) if isinstance(error, ArcFaceError) else error
        return future.result()

    @property
    def spent_text(self) -> str:
        """The words for a message that the time is up."""
        return f"The time allowed for the whole call, {self.timeout_s:g} s, is over"

    def is_over(self, margin_s: float) -> bool:
        """Whether the time is up, or will be in ``margin_s`` seconds."""
        return self._end - time.monotonic() <= margin_s


class EmbedRequest:
    """The crops of one call, the embeddings that are there already, and the deadline. Not thread-safe.

    Args:
        crops: uint8 [N, 112, 112, 3], BGR, C-contiguous; N may be 0.
        deadline: When the whole call must have ended.
    """

    def __init__(self, crops: Crops, deadline: Deadline) -> None:
        self.crops = crops
        self.deadline = deadline
        self._embeddings: Embeddings | None = None
        self._done = np.zeros(len(crops), bool)

    @property
    def embeddings(self) -> Embeddings:
        """float32 [N, D]; rows that are missing are not finite. Its width must have been set."""
        assert self._embeddings is not None
        return self._embeddings

    def set_width(self, dim: int) -> None:
        """Say how many numbers an embedding has.

        Raises:
            OtherEmbeddingSpaceError: A part of the call has embeddings of another width.
        """
        if self._embeddings is None:
            self._embeddings = np.full((len(self.crops), dim), np.nan, np.float32)
        elif self._embeddings.shape[1] != dim:
            raise OtherEmbeddingSpaceError(
                f"The model's embeddings have {dim} numbers, those of the call so far "
                f"{self._embeddings.shape[1]}: they cannot be compared."
            )

    @property
    def missing(self) -> int:
        """How many crops have no embedding yet."""
        return len(self._done) - int(np.count_nonzero(self._done))

    def parts(self, size: int) -> Sequence[slice]:
        """The missing rows in order, as runs of at most ``size`` neighbours."""
        edges = np.flatnonzero(np.diff(self._done.astype(np.int8), prepend=1, append=1))
        return [
            slice(start, min(start + size, int(stop)))
            for first, stop in zip(edges[::2], edges[1::2], strict=True)
            for start in range(int(first), int(stop), size)
        ]

    def fill(self, part: slice, embeddings: Embeddings) -> None:
        """Store the embeddings of a part, float32 [n, D]; crops whose row is not finite stay missing."""
        self.set_width(embeddings.shape[1])
        self.embeddings[part] = embeddings
        self._done[part] = np.isfinite(embeddings).all(axis=1)

    def check_finite(self, model: str) -> None:
        """Check, when a model has embedded all crops, that the embeddings are finite.

        Raises:
            NotFiniteError: Some are not; it names the crops and holds all other embeddings.
        """
        rows = bad_rows(self.embeddings) if self.missing else []
        if rows:
            embeddings = self.embeddings.copy()
            embeddings[rows] = np.nan
            raise NotFiniteError(model, rows, embeddings)


def bad_rows(embeddings: Embeddings) -> list[int]:
    """The rows of float32 [N, D] in which a number is NaN or infinite."""
    rows: list[int] = np.flatnonzero(~np.isfinite(embeddings).all(axis=1)).tolist()
    return rows
