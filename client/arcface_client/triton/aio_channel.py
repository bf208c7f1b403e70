"""How an asyncio client connects: what ``Connection`` is, for one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from grpc.aio import UsageError
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from .channel import triton_arguments
from .server_state import models_from_index
from .status import PROBE_TIMEOUT_S, Aftermath, aftermath_of_failed_probe, may_be_restricted
from .tls import Tls

T = TypeVar("T")


async def result(call: Awaitable[T]) -> T:
    """Await one of tritonclient's calls, and tell the end of its channel from that of the awaiting task.

    gRPC cancels what is under way when its channel closes, which to the task looks as if it were cancelled.

    Raises:
        UsageError: The channel is closed, or was while the call was under way.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    if task.cancelled():
        raise UsageError("The channel was closed.")
    return task.result()


class AsyncConnection:
    """A connection to a server, which asyncio clients of several of its models may share.

    Questions about the server go over a TCP connection of their own, so that they do not wait behind crops.

    Args:
        url: ``host:port`` of the server's gRPC service.
        tls: Certificates; None connects without encryption.
        retries: Let gRPC itself try again what the server did not take.

    Raises:
        ConfigError: The URL cannot be used.
    """

    def __init__(self, url: str, tls: Tls | None = None, *, retries: bool = True) -> None:
        self.url = url
        self.tls = tls
        self.closed = False
        arguments = triton_arguments(url, tls, retries=retries)
        self.triton = triton.InferenceServerClient(**arguments)
        """tritonclient's client."""
        self._questions = triton.InferenceServerClient(**arguments)

    async def close(self) -> None:
        """End it; calls that are under way fail."""
        if not self.closed:
            self.closed = True
            try:
                await self.triton.close()
            finally:
                await self._questions.close()

    async def ask(self, timeout_s: float = PROBE_TIMEOUT_S) -> Aftermath:
        """Ask the server for its models."""
        try:
            index = await result(self._questions.get_model_repository_index(client_timeout=timeout_s))
        except InferenceServerException as error:
            is_live = may_be_restricted(error) and await self.is_live(timeout_s)
            return aftermath_of_failed_probe(error, is_live=is_live)
        except UsageError:
            return Aftermath(answers=False, said="the connection was closed")
        return Aftermath(answers=True, models=models_from_index(index))

    async def is_live(self, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
        """Whether the server answers at all."""
        try:
            await result(self._questions.is_server_live(client_timeout=timeout_s))
        except InferenceServerException as error:
            return aftermath_of_failed_probe(error).answers
        except UsageError:  # closed meanwhile, by somebody who knows why
            return True
        return True
