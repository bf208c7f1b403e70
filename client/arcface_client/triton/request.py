"""A request that is under way: its answer when it comes."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from tritonclient.utils import InferenceServerException

from ..contract import Crops
from .deadline import Deadline


class Request:
    """One request of a client.

    Args:
        crops: uint8 [N, 112, 112, 3].
        deadline: That of the call that it belongs to.
        timeout_s: Seconds that it may take.
        server: The client of tritonclient's that it goes by.

    Attributes:
        future: tritonclient's result, of a request that is sent without waiting for it.
        context: tritonclient's handle, by which such a one is cancelled.
    """

    def __init__(self, crops: Crops, deadline: Deadline, timeout_s: float, server: Any) -> None:
        self.crops = crops
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.server = server
        self.future: Future[Any] = Future()
        self.context: Any = None

    def is_answered(self, *, wait: bool) -> bool:
        """Whether there is a good answer; with ``wait``, within the time that the request has."""
        return (wait or self.future.done()) and self.future.exception() is None

    def answered(self, result: Any, error: InferenceServerException | None) -> None:
        """Callback of tritonclient, from a thread of gRPC's."""
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)

    def give_up(self) -> None:
        """Want no answer any more."""
        if self.context is not None:
            self.context.cancel()
