"""An embedder for asyncio: the same calls, awaited, while threads run them."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Final, Literal, overload

from ..contract import Embeddings
from ..crops import Color, CropsLike, as_batch
from ..errors import ClientClosedError, DeadlineExceededError, InputError
from ..observability.diagnostics import Diagnostics, Served
from ..observability.tracing import traced
from ..triton.embed_request import Deadline, EmbedRequest
from ..triton.fork_guard import ForkGuard
from .base import EmbeddingBackend

DEFAULT_MAX_CALLS: Final = 8


class AsyncEmbeddingBackend:
    """Any embedder, for one event loop.

    ::

        async with AsyncEmbeddingBackend(get_embedding_backend("triton")) as embedder:
            embeddings = await embedder.encode(crops)

    A call that is cancelled raises ``asyncio.CancelledError`` at once. Nothing more is sent for it; what
    was sent already keeps its thread until it is answered or its time is over.

    Args:
        embedder: What embeds; closed together with this.
        max_calls: Calls that run at a time, each in a thread; others wait for their turn.

    Raises:
        InputError: ``max_calls`` is below 1.
    """

    def __init__(self, embedder: EmbeddingBackend, *, max_calls: int = DEFAULT_MAX_CALLS) -> None:
        if max_calls < 1:
            raise InputError(f"max_calls is {max_calls}; expected 1 or more.")
        self._embedder = embedder
        self._fork_guard = ForkGuard("The embedder")
        self._pool = ThreadPoolExecutor(max_calls, "arcface-asyncio")

    async def ensure_ready(self) -> None:
        """Check that the embedder can serve; see ``EmbeddingBackend.ensure_ready``."""
        await asyncio.to_thread(self._embedder.ensure_ready)

    @overload
    async def encode(
        self,
        crops: CropsLike,
        *,
        color: Color = "bgr",
        timeout_s: float | None = None,
        return_source: Literal[False] = False,
    ) -> Embeddings: ...

    @overload
    async def encode(
        self,
        crops: CropsLike,
        *,
        color: Color = "bgr",
        timeout_s: float | None = None,
        return_source: Literal[True],
    ) -> tuple[Embeddings, Served]: ...

    async def encode(
        self,
        crops: CropsLike,
        *,
        color: Color = "bgr",
        timeout_s: float | None = None,
        return_source: bool = False,
    ) -> Embeddings | tuple[Embeddings, Served]:
        """Embed crops; see ``EmbeddingBackend.encode``.

        The crops must not change before it returns. ``timeout_s`` counts from now, the wait for a turn
        included.
        """
        self._fork_guard.check()
        deadline = Deadline(timeout_s)
        limit_s = deadline.remaining_s()
        try:
            call = self._pool.submit(copy_context().run, self._embed, crops, color, deadline)
        except RuntimeError as error:  # the threads have ended
            raise ClientClosedError("The embedder is closed; make a new one.") from error
        waiting = asyncio.wrap_future(call)
        try:
            await asyncio.wait({waiting}, timeout=None if math.isinf(limit_s) else limit_s)
            if call.cancel():  # it had not begun
                raise DeadlineExceededError(
                    f"The time allowed for the whole call, {deadline.timeout_s:g} s, was over before it had "
                    "its turn; allow more time, or more calls at a time (max_calls)."
                )
            embeddings, served = await waiting
        except asyncio.CancelledError:
            deadline.cancel()
            waiting.cancel()
            raise
        return (embeddings, served) if return_source else embeddings

    def diagnostics(self) -> Diagnostics:
        """What the embedder says of itself; it waits for nothing."""
        return self._embedder.diagnostics()

    async def close(self) -> None:
        """Close the embedder, and end the threads; calls that are under way or waiting fail."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> AsyncEmbeddingBackend:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def _embed(self, crops: CropsLike, color: Color, deadline: Deadline) -> tuple[Embeddings, Served]:
        request = EmbedRequest(as_batch(crops, color=color), deadline)
        served = traced(partial(self._embedder.run, request), len(request.crops))
        return request.embeddings, served

    def _close(self) -> None:
        if self._fork_guard.is_forked:
            return  # the embedder and the threads are the parent's
        self._embedder.close()
        self._pool.shutdown()
