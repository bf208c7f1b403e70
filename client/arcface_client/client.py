"""The client: face crops in, embeddings out, through one model of one Triton server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final

from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from .connection import Tls, triton_arguments
from .contract import Crops, Embeddings
from .crops import Color, CropsLike, as_batch
from .deadline import Deadline
from .errors import ArcFaceError
from .failures import (
    PROBE_TIMEOUT_S,
    Aftermath,
    Target,
    aftermath_of_failed_probe,
    closed,
    explain,
    needs_aftermath,
)
from .job import Job
from .requests import (
    ServedModel,
    check_limits,
    embeddings_from,
    infer_arguments,
    runs,
    served_model,
)
from .status import ServerStatus, models_from_index

DEFAULT_MODEL: Final = "arcface_r100_onnx"
DEFAULT_REQUEST_TIMEOUT_S: Final = 60.0
DEFAULT_MAX_IN_FLIGHT: Final = 8


class EmbeddingClient:
    """Embeds face crops with one model of one Triton server. Safe to share between threads.

    ::

        with EmbeddingClient("localhost:8001", model="arcface_r100_onnx") as client:
            embeddings = client.encode(crops)

    Args:
        url: ``host:port`` of the server's gRPC service.
        model: Name of the model.
        version: Its version; None is the newest one that the server has ready.
        request_timeout_s: Seconds that a single request may take, its wait in the server's queue included.
        max_in_flight: Requests that one call keeps with the server at a time.
        tls: Certificates; None connects without encryption.

    Raises:
        ConfigError: The URL or a certificate cannot be used. Nothing is sent before the first call.
        InputError: A limit is out of its range.
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
    ) -> None:
        check_limits(request_timeout_s, max_in_flight)
        self._target = Target(url, model, version)
        self._request_timeout_s = request_timeout_s
        self._max_in_flight = max_in_flight
        self._served: ServedModel | None = None
        self._closed = False
        self._triton = triton.InferenceServerClient(**triton_arguments(url, tls))

    def encode(self, crops: CropsLike, *, color: Color = "bgr", timeout_s: float | None = None) -> Embeddings:
        """Embed crops; the result has one row for each, in their order.

        Args:
            crops: uint8 [N, 112, 112, 3], or a list of uint8 [112, 112, 3]; any N, 0 too.
            color: Channel order of the crops.
            timeout_s: Seconds that the whole call may take; None leaves it to the requests' own limit.

        Returns:
            float32 [N, 512], rows of length one.

        Raises:
            InputError: The crops, or the client (closed), cannot be used.
            TransientError: The server is away, full or late; nothing of the call is kept.
            DeploymentError: The model is missing, not ready, another one, or failed.
        """
        job = Job(as_batch(crops, color=color), Deadline(timeout_s))
        self.work(job)
        return job.embeddings

    def work(self, job: Job) -> None:
        """Embed what a job still misses.

        Args:
            job: Keeps what was embedded before an error, so that somebody else can do the rest.

        Raises:
            ArcFaceError: As ``encode``.
        """
        if not job.missing:
            return
        parts = job.parts(self._model(job.deadline).max_batch_size)
        if len(parts) == 1:
            # To wait for a single request takes no thread, whose wake-up costs a third of a millisecond.
            job.fill(parts[0], self._infer(job.crops[parts[0]], job.deadline))
            return
        answers = self._pipeline((job.crops[part] for part in parts), job.deadline)
        for part, answer in zip(parts, answers, strict=True):
            job.fill(part, answer)

    def stream(self, crops: Iterable[Any], *, color: Color = "bgr") -> Iterator[Embeddings]:
        """Embed crops as they come, however many, and hold only a few batches in memory.

        Args:
            crops: uint8 arrays [112, 112, 3].
            color: Their channel order.

        Yields:
            float32 [n, 512] for the next n crops, in their order.

        Raises:
            ArcFaceError: As ``encode``.
        """
        deadline = Deadline(None)
        size = self._model(deadline).max_batch_size
        return self._pipeline((as_batch(run, color=color) for run in runs(crops, size)), deadline)

    def ensure_ready(self) -> None:
        """Check that the server answers and serves the model with the contract's tensors.

        Raises:
            ArcFaceError: It does not; the message says why.
        """
        self._served = None
        self._model(Deadline(None))

    def status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models.

        Raises:
            ServerUnavailableError: No server answers.
            DeadlineExceededError: It does not answer in time.
        """
        timeout_s = self._request_timeout_s
        metadata = self._call(self._triton.get_server_metadata, timeout_s)
        ready = self._call(self._triton.is_server_ready, timeout_s)
        index = self._call(self._triton.get_model_repository_index, timeout_s)
        return ServerStatus(self._target.url, metadata.version, ready, models_from_index(index))

    def close(self) -> None:
        """Close the connection; a call that is under way in another thread fails."""
        self._closed = True
        self._triton.close()

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _model(self, deadline: Deadline) -> ServedModel:
        if self._served is None:
            timeout_s = deadline.remaining_s(self._request_timeout_s)
            names = (self._target.model, self._target.version_text)
            config = self._call(self._triton.get_model_config, timeout_s, *names)
            self._served = served_model(self._target, config)
        return self._served

    def _infer(self, crops: Crops, deadline: Deadline) -> Embeddings:
        timeout_s = deadline.remaining_s(self._request_timeout_s)
        result = self._call(self._triton.infer, timeout_s, **infer_arguments(self._target, crops))
        return embeddings_from(self._target, result, len(crops))

    def _pipeline(self, batches: Iterable[Crops], deadline: Deadline) -> Iterator[Embeddings]:
        """Send batches, a few at a time, and yield their embeddings in order."""
        under_way: deque[_Request] = deque()
        try:
            for batch in batches:
                if len(under_way) == self._max_in_flight:
                    yield self._answer(under_way.popleft())
                under_way.append(self._send(batch, deadline))
            while under_way:
                yield self._answer(under_way.popleft())
        finally:
            for request in under_way:
                request.context.cancel()

    def _send(self, crops: Crops, deadline: Deadline) -> _Request:
        request = _Request(len(crops), deadline.remaining_s(self._request_timeout_s))
        arguments = infer_arguments(self._target, crops)
        request.context = self._call(
            self._triton.async_infer, request.timeout_s, callback=request.answered, **arguments
        )
        return request

    def _answer(self, request: _Request) -> Embeddings:
        try:
            result = request.future.result()
        except InferenceServerException as error:
            raise self._explained(error, request.timeout_s) from error
        return embeddings_from(self._target, result, request.count)

    def _call(self, method: Callable[..., Any], timeout_s: float, *arguments: Any, **named: Any) -> Any:
        """Call one of tritonclient's methods, and turn what goes wrong into this project's errors."""
        if self._closed:
            raise closed(self._target)
        try:
            return method(*arguments, client_timeout=timeout_s, **named)
        except InferenceServerException as error:
            raise self._explained(error, timeout_s) from error
        except ValueError as error:  # gRPC's word for a channel that is closed
            if self._closed:
                raise closed(self._target) from error
            raise

    def _explained(self, error: InferenceServerException, timeout_s: float) -> ArcFaceError:
        # The server may have come back with another model of this name: look at it again next time.
        self._served = None
        if self._closed:
            return closed(self._target)
        aftermath = self._ask() if needs_aftermath(error) else Aftermath(answers=True)
        return explain(error, self._target, aftermath, timeout_s=timeout_s)

    def _ask(self) -> Aftermath:
        try:
            index = self._triton.get_model_repository_index(client_timeout=PROBE_TIMEOUT_S)
        except InferenceServerException as error:
            return aftermath_of_failed_probe(error)
        except ValueError:  # closed meanwhile
            return Aftermath(answers=False)
        return Aftermath(answers=True, models=models_from_index(index))


class _Request:
    """A request that is under way."""

    def __init__(self, count: int, timeout_s: float) -> None:
        self.count = count
        self.timeout_s = timeout_s
        self.future: Future[Any] = Future()
        self.context: Any = None

    def answered(self, result: Any, error: InferenceServerException | None) -> None:
        """Callback of tritonclient, from a thread of gRPC's."""
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)
