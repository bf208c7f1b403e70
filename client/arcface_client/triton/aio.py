"""The asyncio twin of ``EmbeddingClient``: the same arguments, results and errors."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from ..contract import Crops, Embeddings
from ..crops import Color, CropsLike, as_batch
from ..errors import NotFiniteError, RequestTooLargeError
from .client import NO_EMBEDDINGS, Call, ModelClient
from .embed_request import Deadline, EmbedRequest, bad_rows
from .protocol import Answer, Shape, batches, pinned
from .status import ServerStatus


class AsyncEmbeddingClient(ModelClient):
    """Embeds face crops with one model of one Triton server; safe to share between event loops.

    ::

        async with AsyncEmbeddingClient("localhost:8001", model="arcface_r100_onnx") as client:
            embeddings = await client.encode(crops)

    Arguments and errors are those of ``EmbeddingClient``.
    """

    async def encode(
        self, crops: CropsLike, *, color: Color = "bgr", timeout_s: float | None = None
    ) -> Embeddings:
        """Embed crops; see ``EmbeddingClient.encode``."""
        request = EmbedRequest(as_batch(crops, color=color), Deadline(timeout_s))
        shape = await self._model(request.deadline)
        request.set_width(shape.dim)
        parts = request.parts(min(shape.batch, self._connection.crops_of_a_request))
        done = iter(parts)
        async for embeddings in self._in_order((request.crops[part] for part in parts), request.deadline):
            request.fill(next(done), embeddings)
        request.check_finite(str(self._target))
        return request.embeddings

    async def stream(self, crops: Iterable[Any], *, color: Color = "bgr") -> AsyncIterator[Embeddings]:
        """Embed crops as they come; see ``EmbeddingClient.stream``."""
        deadline = Deadline(None)
        shape = await self._model(deadline)
        size = min(shape.batch, self._connection.crops_of_a_request)
        arrays = (as_batch(batch, color=color) for batch in batches(crops, size))
        done, bad, embeddings = 0, list[int](), NO_EMBEDDINGS
        async for embeddings in self._in_order(arrays, deadline):
            bad += (done + row for row in bad_rows(embeddings))
            done += len(embeddings)
            yield embeddings
        if bad:
            raise NotFiniteError(str(self._target), bad, embeddings[:0])

    async def ensure_ready(self, *, timeout_s: float | None = None) -> None:
        """Check that the model can be used; see ``EmbeddingClient.ensure_ready``."""
        await asyncio.to_thread(self._ensure_ready, timeout_s)

    async def status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models; see ``EmbeddingClient.status``."""
        return await asyncio.to_thread(self._status)

    async def close(self) -> None:
        """Close the connection, unless it is shared; calls that are under way fail."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> AsyncEmbeddingClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _model(self, deadline: Deadline) -> Shape:
        shape = self._shape
        return await asyncio.to_thread(self._ask_shape, deadline) if shape is None else shape

    async def _in_order(self, arrays: Iterable[Crops], deadline: Deadline) -> AsyncIterator[Embeddings]:
        """Send batches, a few at a time, and yield their embeddings in order."""
        under_way: deque[Call] = deque()
        source, target = iter(arrays), self._target
        try:
            while True:
                for crops in itertools.islice(source, self._limits.max_in_flight - len(under_way)):
                    under_way.append(self._send(crops, deadline, target))
                if not under_way:
                    return
                answer = await self._answer(under_way.popleft())
                target = pinned(target, answer)
                yield answer.embeddings
        finally:
            for call in under_way:
                call.cancel()

    async def _answer(self, call: Call) -> Answer:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended.set)

        call.result.add_done_callback(wake)
        try:
            await ended.wait()
        except asyncio.CancelledError:
            call.cancel()
            raise
        if call.result.exception() is None:
            return self._wait(call)
        return await asyncio.to_thread(self._explain, call)

    def _explain(self, call: Call) -> Answer:
        """Raise the error of a call, or embed its crops in smaller requests; the server is asked for both."""
        try:
            return self._wait(call)
        except RequestTooLargeError as error:
            return self._in_parts(call, error)
