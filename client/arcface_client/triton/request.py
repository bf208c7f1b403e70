"""A request that is under way: its answer when it comes, and the shared memory that it goes by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tritonclient.utils import InferenceServerException

from ..contract import Crops
from .deadline import Deadline
from .region import Region
from .shared_memory import SharedMemory


class Request:
    """One request of a client.

    Args:
        crops: uint8 [N, 112, 112, 3].
        deadline: That of the call that it belongs to.
        server: The client of tritonclient's that it goes by.
        shared_memory: Where its region is from.
        region: Shared memory that it goes by; None when crops and embeddings are in the messages.

    Attributes:
        timeout_s: Seconds that it may take.
        is_shared: Whether it goes by shared memory.
        region: That memory, until it is let go.
        future: tritonclient's result, of a request that is sent without waiting for it.
        context: tritonclient's handle, by which such a one is cancelled.
    """

    def __init__(
        self,
        crops: Crops,
        deadline: Deadline,
        server: Any,
        shared_memory: SharedMemory | None = None,
        region: Region | None = None,
    ) -> None:
        self.crops = crops
        self.deadline = deadline
        self.timeout_s = math.inf
        self.server = server
        self.region = region
        self.is_shared = region is not None
        self.future: Future[Any] = Future()
        self.context: Any = None
        self._shared_memory = shared_memory

    def is_answered(self, *, wait: bool) -> bool:
        """Whether there is a good answer; with ``wait``, within the time that the request has."""
        return (wait or self.future.done()) and self.future.exception() is None

    def answered(self, result: Any, error: InferenceServerException | None) -> None:
        """Callback of tritonclient, from a thread of gRPC's."""
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read the answer in this context; the region is free for others behind it, unless it failed."""
        answered = False
        try:
            yield
            answered = True
        finally:
            self._let_go(answered=answered)

    def give_up(self) -> None:
        """Want no answer any more."""
        if self.context is not None:
            self.context.cancel()
        self._let_go(answered=self.future.done() and self.is_answered(wait=False))

    def _let_go(self, *, answered: bool) -> None:
        # Dropped here: the traceback of an error would keep the memory as long as itself.
        region, self.region = self.region, None
        if answered and region is not None and self._shared_memory is not None:
            self._shared_memory.give_back(region)
