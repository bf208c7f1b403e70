"""The client: face crops in, embeddings out, through one model of one Triton server."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from ..contract import Crops, Embeddings
from ..crops import Color, CropsLike, as_batch
from ..errors import ArcFaceError, ServerBusyError
from ..models.naming import DEFAULT_MODEL
from .channel import Connection, check_goes_by
from .deadline import Deadline
from .embed_request import EmbedRequest
from .limits import DEFAULT_MAX_IN_FLIGHT, DEFAULT_REQUEST_TIMEOUT_S, check_limits
from .protocol import OneVersion, runs
from .request import Request
from .sender import Sender
from .server_state import ServerStatus
from .status import Target
from .tls import Tls

Key = TypeVar("Key")


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
        tls: Certificates; None connects without encryption, or as the connection does.
        connection: A connection to this server that others use too, and close; None makes one of its own.

    Raises:
        ConfigError: The URL or a certificate cannot be used. Nothing is sent before the first call.
        InputError: A limit is out of its range, or the connection is another server's.
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
        connection: Connection | None = None,
    ) -> None:
        check_limits(request_timeout_s, max_in_flight)
        self._max_in_flight = max_in_flight
        if connection is not None:
            check_goes_by(connection, url, tls)
        self._shares = connection is not None
        self._connection = connection or Connection(url, tls)
        self._sender = Sender(Target(url, model, version), self._connection, request_timeout_s)

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
        job = EmbedRequest(as_batch(crops, color=color), Deadline(timeout_s))
        self.work(job)
        return job.embeddings

    def work(self, job: EmbedRequest) -> None:
        """Embed what a job still misses.

        Args:
            job: Keeps whatever was embedded before an error, so that somebody else can do the rest.

        Raises:
            ArcFaceError: As ``encode``.
        """
        if not job.missing:
            return
        parts = job.parts(self._sender.model(job.deadline).max_batch_size)
        if len(parts) == 1:
            # To wait for a single request takes no thread, whose wake-up costs a third of a millisecond.
            job.fill(parts[0], self._sender.infer(job.crops[parts[0]], job.deadline).embeddings)
            return
        batches = ((part, job.crops[part]) for part in parts)
        for part, answer in self._pipeline(batches, job.deadline, salvage=True):
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
        size = self._sender.model(deadline).max_batch_size
        batches = ((None, as_batch(run, color=color)) for run in runs(crops, size))
        return (answer for _, answer in self._pipeline(batches, deadline))

    def ensure_ready(self, *, timeout_s: float | None = None) -> None:
        """Check that the server answers and serves the model with the contract's tensors.

        Args:
            timeout_s: Seconds that it may take; None leaves it to the requests' own limit.

        Raises:
            ArcFaceError: It does not; the message says why.
        """
        self._sender.forget_model()
        self._sender.model(Deadline(timeout_s))

    def status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models.

        Raises:
            ServerUnavailableError: No server answers.
            DeadlineExceededError: It does not answer in time.
        """
        return self._sender.server_status()

    def close(self) -> None:
        """Close the connection, unless it is shared; a call that is under way in another thread fails."""
        if not self._shares:
            self._connection.close()

    @property
    def max_batch_size(self) -> int | None:
        """Crops that the model takes at once; None before the first call."""
        served = self._sender.served
        return None if served is None else served.max_batch_size

    @property
    def answered_by(self) -> int | None:
        """The version that answered last; None before the first call, or when the server does not say."""
        return self._sender.answered_by

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pipeline(
        self, batches: Iterable[tuple[Key, Crops]], deadline: Deadline, *, salvage: bool = False
    ) -> Iterator[tuple[Key, Embeddings]]:
        """Send batches, a few at a time, and yield their embeddings in order, each with its batch's key.

        With ``salvage``, what is there of the others when one fails is yielded before its error is raised.
        """
        under_way: deque[tuple[Key, Request]] = deque()
        one = OneVersion(self._sender.target)
        try:
            for key, batch in batches:
                if len(under_way) == self._max_in_flight:
                    yield self._next(under_way, one)
                under_way.append((key, self._sender.send(batch, deadline, one.target)))
            while under_way:
                yield self._next(under_way, one)
        except ArcFaceError as error:
            for key, request in under_way if salvage else ():
                # A full queue refuses one request while it serves the others: these are worth a wait.
                if request.is_answered(wait=isinstance(error, ServerBusyError)):
                    yield key, one.take(self._sender.answer(request))
            raise
        finally:
            for _, request in under_way:
                request.give_up()

    def _next(self, under_way: deque[tuple[Key, Request]], one: OneVersion) -> tuple[Key, Embeddings]:
        key, request = under_way.popleft()
        return key, one.take(self._sender.answer(request))
