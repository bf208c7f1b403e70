"""The asyncio twin of ``EmbeddingClient``: the same arguments, results and errors."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

from grpc.aio import UsageError
from tritonclient.utils import InferenceServerException

from ..contract import Crops, Embeddings
from ..crops import Color, CropsLike, as_batch
from .channel import AsyncConnection
from .client import ClientBase
from .embed_request import Deadline, EmbedRequest
from .protocol import Answer, batches, build, largest_batch, pinned, read
from .status import (
    PROBE_TIMEOUT_S,
    Reply,
    ServerStatus,
    Target,
    closed,
    explain,
    is_timeout,
    models_from_index,
)

T = TypeVar("T")


class AsyncEmbeddingClient(ClientBase[AsyncConnection]):
    """Embeds face crops with one model of one Triton server, for one event loop.

    ::

        async with AsyncEmbeddingClient("localhost:8001", model="arcface_r100_onnx") as client:
            embeddings = await client.encode(crops)

    Arguments and errors are those of ``EmbeddingClient``; ``connection`` is an ``AsyncConnection``.
    """

    _connection_type = AsyncConnection

    async def encode(
        self, crops: CropsLike, *, color: Color = "bgr", timeout_s: float | None = None
    ) -> Embeddings:
        """Embed crops; see ``EmbeddingClient.encode``."""
        request = EmbedRequest(as_batch(crops, color=color), Deadline(timeout_s))
        if request.missing:
            parts = request.parts(await self._model(request.deadline))
            done = iter(parts)
            async for embeddings in self._pipeline((request.crops[part] for part in parts), request.deadline):
                request.fill(next(done), embeddings)
        return request.embeddings

    async def stream(self, crops: Iterable[Any], *, color: Color = "bgr") -> AsyncIterator[Embeddings]:
        """Embed crops as they come; see ``EmbeddingClient.stream``."""
        deadline = Deadline(None)
        size = await self._model(deadline)
        arrays = (as_batch(batch, color=color) for batch in batches(crops, size))
        async for embeddings in self._pipeline(arrays, deadline):
            yield embeddings

    async def ensure_ready(self, *, timeout_s: float | None = None) -> None:
        """Check that the model can be used; see ``EmbeddingClient.ensure_ready``."""
        self._largest_batch = None
        await self._model(Deadline(timeout_s))

    async def status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models; see ``EmbeddingClient.status``."""
        deadline, target, client = Deadline(None), Target(self._target.url), self._connection.triton
        metadata = await self._do(client.get_server_metadata, deadline, target)
        ready = await self._do(client.is_server_ready, deadline, target)
        index = await self._do(client.get_model_repository_index, deadline, target)
        return ServerStatus(target.url, metadata.version, ready, models_from_index(index))

    async def close(self) -> None:
        """Close the connection, unless it is shared; calls that are under way fail."""
        if self._owns_connection:
            await self._connection.close()

    async def __aenter__(self) -> AsyncEmbeddingClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _model(self, deadline: Deadline) -> int:
        """How many crops the model takes at once; the server is asked only once."""
        size = self._largest_batch  # another call's failure may set it to None at any time
        if size is None:
            target, ask = self._target, self._connection.triton.get_model_config
            config = await self._do(ask, deadline, target, target.model, target.version_text)
            size = self._largest_batch = largest_batch(target, config)
        return size

    async def _pipeline(self, arrays: Iterable[Crops], deadline: Deadline) -> AsyncIterator[Embeddings]:
        """Send batches, a few at a time, and yield their embeddings in order."""
        under_way: deque[asyncio.Task[Answer]] = deque()
        source, target = iter(arrays), self._target
        try:
            while True:
                for crops in itertools.islice(source, self._limits.max_in_flight - len(under_way)):
                    under_way.append(asyncio.create_task(self._infer(crops, deadline, target)))
                if not under_way:
                    return
                answer = await under_way.popleft()
                target = pinned(target, answer)
                yield answer.embeddings
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _infer(self, crops: Crops, deadline: Deadline, target: Target) -> Answer:
        infer = self._connection.triton.infer
        answer = read(target, await self._do(infer, deadline, target, **build(target, crops)), len(crops))
        self._answered_by = answer.version
        return answer

    async def _do(
        self,
        method: Callable[..., Awaitable[T]],
        deadline: Deadline,
        target: Target,
        *arguments: Any,
        **named: Any,
    ) -> T:
        """Call one of tritonclient's methods; its errors become this project's."""
        if self._connection.closed:
            raise closed(target)
        timeout_s = deadline.remaining_s(self._limits.request_timeout_s)
        try:
            return await method(*arguments, client_timeout=timeout_s, **named)
        except InferenceServerException as error:
            self._largest_batch = None
            reply = Reply(answers=True)
            if not is_timeout(error):
                reply = await self._connection.ask(deadline.remaining_s(PROBE_TIMEOUT_S))
            if self._connection.closed:
                raise closed(target) from error
            raise explain(error, target, reply, timeout_s=timeout_s) from error
        except (UsageError, asyncio.CancelledError) as error:
            # gRPC cancels the calls of a channel that closes.
            if self._connection.closed:
                raise closed(target) from error
            raise
