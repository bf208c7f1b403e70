"""The asyncio twin of ``EmbeddingClient``: the same arguments, results and errors."""

from __future__ import annotations

import asyncio
from types import TracebackType

import numpy as np
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from .client import DEFAULT_MAX_IN_FLIGHT, DEFAULT_REQUEST_TIMEOUT_S, check_limits
from .connection import Tls, triton_arguments
from .contract import EMBEDDING_DIM, Crops, Embeddings
from .crops import Color, CropsLike, as_batch
from .deadline import Deadline
from .errors import ArcFaceError, ClientClosedError
from .failures import (
    PROBE_TIMEOUT_S,
    Aftermath,
    Target,
    aftermath_of_failed_probe,
    explain,
    needs_aftermath,
)
from .requests import ServedModel, embeddings_from, infer_arguments, served_model, slices
from .status import ServerStatus, models_from_index


class AsyncEmbeddingClient:
    """Embeds face crops with one model of one Triton server, for one event loop.

    ::

        async with AsyncEmbeddingClient("localhost:8001", model="arcface_r100_onnx") as client:
            embeddings = await client.encode(crops)

    Arguments and errors are those of ``EmbeddingClient``.
    """

    def __init__(
        self,
        url: str,
        model: str,
        version: int | None = None,
        *,
        request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        tls: Tls | None = None,
    ) -> None:
        check_limits(request_timeout_s, max_in_flight)
        self._target = Target(url, model, version)
        self._request_timeout_s = request_timeout_s
        self._max_in_flight = max_in_flight
        self._served: ServedModel | None = None
        self._closed = False
        self._triton = triton.InferenceServerClient(**triton_arguments(url, tls))

    async def encode(
        self, crops: CropsLike, *, color: Color = "bgr", timeout_s: float | None = None
    ) -> Embeddings:
        """Embed crops; see ``EmbeddingClient.encode``."""
        batch = as_batch(crops, color=color)
        embeddings = np.empty((len(batch), EMBEDDING_DIM), np.float32)
        if len(batch) == 0:
            return embeddings
        deadline = Deadline(timeout_s)
        served = await self._model(deadline)
        free_places = asyncio.Semaphore(self._max_in_flight)

        async def embed(part: slice) -> None:
            async with free_places:
                embeddings[part] = await self._infer(batch[part], deadline)

        tasks = [asyncio.create_task(embed(part)) for part in slices(len(batch), served.max_batch_size)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return embeddings

    async def ensure_ready(self) -> None:
        """Check that the model can be used; see ``EmbeddingClient.ensure_ready``."""
        self._served = None
        await self._model(Deadline(None))

    async def status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models."""
        timeout_s = self._request_timeout_s
        try:
            metadata = await self._triton.get_server_metadata(client_timeout=timeout_s)
            ready = await self._triton.is_server_ready(client_timeout=timeout_s)
            index = await self._triton.get_model_repository_index(client_timeout=timeout_s)
        except InferenceServerException as error:
            raise await self._explained(error, timeout_s) from error
        return ServerStatus(self._target.url, metadata.version, ready, models_from_index(index))

    async def close(self) -> None:
        """Close the connection; calls that are under way fail."""
        if not self._closed:
            self._closed = True
            await self._triton.close()

    async def __aenter__(self) -> AsyncEmbeddingClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _model(self, deadline: Deadline) -> ServedModel:
        if self._closed:
            raise ClientClosedError("The client is closed; make a new one.")
        if self._served is None:
            timeout_s = deadline.remaining_s(self._request_timeout_s)
            try:
                response = await self._triton.get_model_config(
                    self._target.model, self._target.version_text, client_timeout=timeout_s
                )
            except InferenceServerException as error:
                raise await self._explained(error, timeout_s) from error
            self._served = served_model(self._target, response)
        return self._served

    async def _infer(self, crops: Crops, deadline: Deadline) -> Embeddings:
        timeout_s = deadline.remaining_s(self._request_timeout_s)
        try:
            result = await self._triton.infer(**infer_arguments(self._target, crops, timeout_s))
        except InferenceServerException as error:
            raise await self._explained(error, timeout_s) from error
        return embeddings_from(self._target, result, len(crops))

    async def _explained(self, error: InferenceServerException, timeout_s: float) -> ArcFaceError:
        self._served = None
        if self._closed:
            return ClientClosedError(f"The client was closed while it waited for {self._target}.")
        aftermath = await self._ask() if needs_aftermath(error) else Aftermath(answers=True)
        return explain(error, self._target, aftermath, timeout_s=timeout_s)

    async def _ask(self) -> Aftermath:
        try:
            index = await self._triton.get_model_repository_index(client_timeout=PROBE_TIMEOUT_S)
        except InferenceServerException as error:
            return aftermath_of_failed_probe(error)
        return Aftermath(answers=True, models=models_from_index(index))
