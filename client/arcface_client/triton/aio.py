"""The asyncio twin of ``EmbeddingClient``: the same arguments, results and errors."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any

from grpc.aio import UsageError
from tritonclient.utils import InferenceServerException

from ..contract import Crops, Embeddings
from ..crops import Color, CropsLike, as_batch
from ..errors import ArcFaceError
from ..models.naming import DEFAULT_MODEL
from .aio_channel import AsyncConnection, result
from .channel import check_goes_by
from .deadline import Deadline
from .embed_request import EmbedRequest
from .limits import DEFAULT_MAX_IN_FLIGHT, DEFAULT_REQUEST_TIMEOUT_S, check_limits
from .protocol import Answer, OneVersion, ServedModel, answer_from, infer_arguments, runs, served_model
from .server_state import ServerStatus, models_from_index
from .status import PROBE_TIMEOUT_S, Aftermath, Target, closed, explain, needs_aftermath
from .tls import Tls


class AsyncEmbeddingClient:
    """Embeds face crops with one model of one Triton server, for one event loop.

    ::

        async with AsyncEmbeddingClient("localhost:8001", model="arcface_r100_onnx") as client:
            embeddings = await client.encode(crops)

    Arguments and errors are those of ``EmbeddingClient``; ``connection`` is an ``AsyncConnection``.
    """

    def __init__(
        self,
        url: str,
        model: str = DEFAULT_MODEL,
        version: int | None = None,
        *,
        request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        tls: Tls | None = None,
        connection: AsyncConnection | None = None,
    ) -> None:
        check_limits(request_timeout_s, max_in_flight)
        self._target = Target(url, model, version)
        self._request_timeout_s = request_timeout_s
        self._max_in_flight = max_in_flight
        self._served: ServedModel | None = None
        self._answered_by: int | None = None
        if connection is not None:
            check_goes_by(connection, url, tls)
        self._shares = connection is not None
        self._connection = connection or AsyncConnection(url, tls)

    async def encode(
        self, crops: CropsLike, *, color: Color = "bgr", timeout_s: float | None = None
    ) -> Embeddings:
        """Embed crops; see ``EmbeddingClient.encode``."""
        job = EmbedRequest(as_batch(crops, color=color), Deadline(timeout_s))
        if job.missing:
            parts = job.parts((await self._model(job.deadline)).max_batch_size)
            done = iter(parts)
            async for answer in self._pipeline((job.crops[part] for part in parts), job.deadline):
                job.fill(next(done), answer)
        return job.embeddings

    async def stream(self, crops: Iterable[Any], *, color: Color = "bgr") -> AsyncIterator[Embeddings]:
        """Embed crops as they come; see ``EmbeddingClient.stream``."""
        deadline = Deadline(None)
        size = (await self._model(deadline)).max_batch_size
        batches = (as_batch(run, color=color) for run in runs(crops, size))
        async for answer in self._pipeline(batches, deadline):
            yield answer

    async def ensure_ready(self, *, timeout_s: float | None = None) -> None:
        """Check that the model can be used; see ``EmbeddingClient.ensure_ready``."""
        self._served = None
        await self._model(Deadline(timeout_s))

    async def status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models; see ``EmbeddingClient.status``."""
        timeout_s, target, triton = self._request_timeout_s, Target(self._target.url), self._connection.triton
        metadata = await self._call(triton.get_server_metadata, timeout_s, target=target)
        ready = await self._call(triton.is_server_ready, timeout_s, target=target)
        index = await self._call(triton.get_model_repository_index, timeout_s, target=target)
        return ServerStatus(target.url, metadata.version, ready, models_from_index(index))

    async def close(self) -> None:
        """Close the connection, unless it is shared; calls that are under way fail."""
        if not self._shares:
            await self._connection.close()

    @property
    def max_batch_size(self) -> int | None:
        """Crops that the model takes at once; None before the first call."""
        return None if self._served is None else self._served.max_batch_size

    @property
    def answered_by(self) -> int | None:
        """The version that answered last; None before the first call, or when the server does not say."""
        return self._answered_by

    async def __aenter__(self) -> AsyncEmbeddingClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _model(self, deadline: Deadline) -> ServedModel:
        served = self._served  # another call's failure may set it to None at any time
        if served is None:
            timeout_s = deadline.remaining_s(self._request_timeout_s)
            names = (self._target.model, self._target.version_text)
            ask = self._connection.triton.get_model_config
            config = await self._call(ask, timeout_s, *names, deadline=deadline)
            served = self._served = served_model(self._target, config)
        return served

    async def _infer(self, crops: Crops, deadline: Deadline, target: Target) -> Answer:
        timeout_s = deadline.remaining_s(self._request_timeout_s)
        arguments = infer_arguments(target, crops)
        received = await self._call(self._connection.triton.infer, timeout_s, deadline=deadline, **arguments)
        answer = answer_from(self._target, received, len(crops))
        self._answered_by = answer.version
        return answer

    async def _pipeline(self, batches: Iterable[Crops], deadline: Deadline) -> AsyncIterator[Embeddings]:
        """Send batches, a few at a time, and yield their embeddings in order."""
        under_way: deque[asyncio.Task[Answer]] = deque()
        one = OneVersion(self._target)
        try:
            for batch in batches:
                if len(under_way) == self._max_in_flight:
                    yield one.take(await under_way.popleft())
                under_way.append(asyncio.create_task(self._infer(batch, deadline, one.target)))
            while under_way:
                yield one.take(await under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _call(
        self,
        method: Callable[..., Awaitable[Any]],
        timeout_s: float,
        *arguments: Any,
        deadline: Deadline | None = None,
        target: Target | None = None,
        **named: Any,
    ) -> Any:
        """Call one of tritonclient's methods, and turn what goes wrong into this project's errors."""
        target = target or self._target
        if self._connection.closed:
            raise closed(target)
        try:
            return await result(method(*arguments, client_timeout=timeout_s, **named))
        except InferenceServerException as error:
            raise await self._explained(error, timeout_s, deadline or Deadline(None), target) from error
        except UsageError as error:
            raise closed(target) from error

    async def _explained(
        self, error: InferenceServerException, timeout_s: float, deadline: Deadline, target: Target
    ) -> ArcFaceError:
        self._served = None
        if self._connection.closed:
            return closed(target)
        aftermath = Aftermath(answers=True)
        if needs_aftermath(error):
            aftermath = await self._connection.ask(deadline.remaining_s(PROBE_TIMEOUT_S))
        return explain(error, target, aftermath, timeout_s=timeout_s)
