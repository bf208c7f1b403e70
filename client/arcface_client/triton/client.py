"""Face crops in, embeddings out, through one model of one Triton server."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from tritonclient.utils import InferenceServerException

from ..contract import CROP_SHAPE, Crops, Embeddings
from ..crops import Color, CropsLike, as_batch
from ..errors import ArcFaceError, InputError, NotFiniteError, RequestTooLargeError, ServerBusyError
from ..models.naming import DEFAULT_MODEL
from ..models.release import Release
from .channel import Connection
from .embed_request import Deadline, EmbedRequest, bad_rows
from .limits import RequestLimits, Tls
from .protocol import Answer, Shape, batches, build, pinned, read, read_shape
from .status import (
    PROBE_TIMEOUT_S,
    Reply,
    ServerStatus,
    Target,
    explain,
    models_from_index,
)

Key = TypeVar("Key")

NO_CROPS: Final[Crops] = np.empty((0, *CROP_SHAPE), np.uint8)
NO_EMBEDDINGS: Final[Embeddings] = np.empty((0, 0), np.float32)


class ModelClient:
    """What ``EmbeddingClient`` and its asyncio twin share: one model of one server, and requests to it."""

    def __init__(
        self,
        url: str | None = None,
        model: str = DEFAULT_MODEL,
        version: int | None = None,
        *,
        request_timeout_s: float = RequestLimits.request_timeout_s,
        max_in_flight: int = RequestLimits.max_in_flight,
        tls: Tls | None = None,
        metadata: Mapping[str, str] | None = None,
        token_file: Path | None = None,
        max_request_mb: float | None = None,
        connection: Connection | None = None,
    ) -> None:
        self._limits = RequestLimits(
            request_timeout_s=request_timeout_s,
            max_in_flight=max_in_flight,
            tls=tls,
            metadata=metadata or {},
            token_file=token_file,
            max_request_mb=max_request_mb,
        )
        if connection is not None and any(
            one is not None for one in (url, tls, metadata, token_file, max_request_mb)
        ):
            raise InputError(
                f"An address, certificates, metadata or a size is given beside a connection to "
                f"{connection.url}; give only the connection, which has them."
            )
        self._owns_connection = connection is None
        self._connection = connection or Connection(url or "", self._limits)
        self._target = Target(self._connection.url, model, version)
        self._shape: Shape | None = None
        self._answered_by: int | None = None

    @property
    def max_batch_size(self) -> int | None:
        """Crops that the model takes at once; None before the first call."""
        return None if self._shape is None else self._shape.batch

    @property
    def embedding_dim(self) -> int | None:
        """D, how many numbers an embedding has; None before the first call."""
        return None if self._shape is None else self._shape.dim

    @property
    def answered_by(self) -> int | None:
        """The version that answered last; None before the first call, or if the server does not say."""
        return self._answered_by

    def _ensure_ready(self, timeout_s: float | None) -> None:
        self._shape = None
        self._ask_shape(Deadline(timeout_s))

    def _status(self) -> ServerStatus:
        call = self._begin(Deadline(None), Target(self._target.url))
        client, timeout_s = call.client, call.timeout_s
        with self._explained(call):
            metadata = client.get_server_metadata(client_timeout=timeout_s)
            ready = client.is_server_ready(client_timeout=timeout_s)
            index = client.get_model_repository_index(client_timeout=timeout_s)
        models = models_from_index(index)
        names = {model.name for model in models if model.ready}
        releases = {name: self._connection.release(name) or Release() for name in names}
        roles = [releases.get(model.name, Release()).role(model.version) or model.role for model in models]
        models = tuple(replace(model, role=role) for model, role in zip(models, roles, strict=True))
        return ServerStatus(call.target.url, metadata.version, ready, models)

    def _close(self) -> None:
        if self._owns_connection:
            self._connection.close()

    def _ask_shape(self, deadline: Deadline) -> Shape:
        """Ask the server for the model's shape, the first time."""
        shape = self._shape  # another thread's failure may set it to None at any time
        if shape is None:
            call = self._begin(deadline)
            names = (call.target.model, call.target.version_text)
            with self._explained(call):
                config = call.client.get_model_config(*names, client_timeout=call.timeout_s)
            shape = self._shape = read_shape(call.target, config)
        return shape

    def _send(self, crops: Crops, deadline: Deadline, target: Target) -> Call:
        """Send one batch without waiting for its answer."""
        call = self._begin(deadline, target, crops)
        if len(crops) > self._connection.crops_of_a_request:
            call.is_sent = False
            call.result.set_exception(RequestTooLargeError("A request of this size was refused before."))
            return call
        with self._explained(call):
            call.handle = call.client.async_infer(
                **build(target, crops), callback=call.answered, client_timeout=call.timeout_s
            )
        return call

    def _wait(self, call: Call) -> Answer:
        with self._explained(call):
            result = call.result.result()
        return self._read(call, result)

    def _read(self, call: Call, result: Any) -> Answer:
        self._connection.answered()
        answer = read(call.target, result, len(call.crops), self.embedding_dim)
        self._answered_by = answer.version
        return answer

    def _begin(self, deadline: Deadline, target: Target | None = None, crops: Crops = NO_CROPS) -> Call:
        target = target or self._target
        self._connection.check(target)
        timeout_s = deadline.remaining_s(self._limits.request_timeout_s)
        return Call(target, deadline, timeout_s, self._connection.triton, crops)

    @contextmanager
    def _explained(self, call: Call) -> Iterator[None]:
        """Turn tritonclient's errors into this project's."""
        try:
            yield
        except (InferenceServerException, ValueError) as error:
            broken = self._connection.broken(call.client, call.target)
            if broken is not None:
                raise broken from error
            if isinstance(error, ValueError):
                raise  # gRPC raises one for a closed channel, and this channel is open
            # The server may have come back with another model of this name: ask for it again next time.
            self._shape = None
            raise explain(error, call.target, partial(self._ask, call), timeout_s=call.timeout_s) from error

    def _ask(self, call: Call) -> Reply:
        return self._connection.ask(call.deadline.remaining_s(PROBE_TIMEOUT_S))

    def _embed(self, request: EmbedRequest) -> None:
        shape = self._ask_shape(request.deadline)
        request.set_width(shape.dim)
        parts = request.parts(min(shape.batch, self._connection.crops_of_a_request))
        if len(parts) == 1:
            # Without another thread, whose wake-up would cost a third of a millisecond.
            call = self._begin(request.deadline, crops=request.crops[parts[0]])
            try:
                with self._explained(call):
                    result = call.client.infer(
                        **build(call.target, call.crops), client_timeout=call.timeout_s
                    )
            except RequestTooLargeError as error:
                request.fill(parts[0], self._in_parts(call, error).embeddings)
            else:
                request.fill(parts[0], self._read(call, result).embeddings)
            return
        keyed = ((part, request.crops[part]) for part in parts)
        for part, embeddings in self._pipeline(keyed, request.deadline, salvage=True):
            request.fill(part, embeddings)

    def _in_parts(self, call: Call, error: RequestTooLargeError) -> Answer:
        """Embed a batch that was too large for one request; raises the error if it is a single crop."""
        if call.is_sent and not self._connection.make_smaller(len(call.crops)):
            raise error
        request = EmbedRequest(call.crops, call.deadline)
        self._embed(request)
        return Answer(request.embeddings, self._answered_by)

    def _pipeline(
        self, keyed: Iterable[tuple[Key, Crops]], deadline: Deadline, *, salvage: bool = False
    ) -> Iterator[tuple[Key, Embeddings]]:
        """Send batches, a few at a time, and yield their embeddings in order, each with its batch's key.

        With ``salvage``, the other requests' answers are yielded before the error of a failed one is raised.
        """
        under_way: deque[tuple[Key, Call]] = deque()
        source, target = iter(keyed), self._target
        try:
            while True:
                for key, crops in itertools.islice(source, self._limits.max_in_flight - len(under_way)):
                    under_way.append((key, self._send(crops, deadline, target)))
                if not under_way:
                    return
                key, call = under_way.popleft()
                try:
                    answer = self._wait(call)
                except RequestTooLargeError as error:
                    answer = self._in_parts(call, error)
                target = pinned(target, answer)
                yield key, answer.embeddings
        except ArcFaceError as error:
            for key, call in under_way if salvage else ():
                # A full queue refuses one request while it serves the others: those are worth a wait.
                waits = isinstance(error, ServerBusyError)
                if (waits or call.result.done()) and call.result.exception() is None:
                    answer = self._wait(call)
                    target = pinned(target, answer)
                    yield key, answer.embeddings
            raise
        finally:
            for _, call in under_way:
                call.cancel()


class EmbeddingClient(ModelClient):
    """Embeds face crops with one model of one Triton server. Safe to share between threads.

    ::

        with EmbeddingClient("localhost:8001", model="arcface_r100_onnx") as client:
            embeddings = client.encode(crops)

    Args:
        url: ``host:port`` of the server's gRPC service; not together with ``connection``.
        model: Name of the model.
        version: Its version; None means the newest one that the server has ready.
        request_timeout_s: Seconds that a single request may take, its wait in the server's queue included.
        max_in_flight: Requests that one call keeps with the server at a time.
        tls: Certificates; None connects without encryption.
        metadata: Sent with every request; see ``RequestLimits``.
        token_file: File of a bearer token; see ``RequestLimits``.
        max_request_mb: Largest request in MiB; see ``RequestLimits``.
        connection: A connection that other clients use too, and that this client does not close.

    Raises:
        ConfigError: The URL or a certificate cannot be used. Nothing is sent before the first call.
        InputError: A limit is out of its range, or an address is given beside a connection.
    """

    def encode(self, crops: CropsLike, *, color: Color = "bgr", timeout_s: float | None = None) -> Embeddings:
        """Embed crops; the result has one row for each, in their order.

        Args:
            crops: uint8 [N, 112, 112, 3], or a list of uint8 [112, 112, 3]; any N, 0 too.
            color: Channel order of the crops.
            timeout_s: Seconds that the whole call may take; None leaves it to the requests' own limit.

        Returns:
            float32 [N, D], rows of length one; D is the network's own, 512 for ArcFace.

        Raises:
            InputError: The crops cannot be used, or the client is closed.
            TransientError: The server is away, full or late.
            DeploymentError: The model is missing, not ready, not of the contract, or failed.
            NotFiniteError: The embeddings of some crops are NaN; the error holds the others.
        """
        request = EmbedRequest(as_batch(crops, color=color), Deadline(timeout_s))
        self.embed_request(request)
        return request.embeddings

    def embed_request(self, request: EmbedRequest) -> None:
        """Embed the crops that a request still misses.

        Args:
            request: Keeps what was embedded before an error, so that another client can do the rest.

        Raises:
            ArcFaceError: As ``encode``.
        """
        self._embed(request)
        request.check_finite(str(self._target))

    def stream(self, crops: Iterable[Any], *, color: Color = "bgr") -> Iterator[Embeddings]:
        """Embed crops as they come, however many, and hold only a few batches in memory.

        Args:
            crops: uint8 arrays [112, 112, 3].
            color: Their channel order.

        Yields:
            float32 [n, D] for the next n crops, in their order.

        Raises:
            NotFiniteError: After all others: some rows are NaN or infinite; without ``embeddings``.
            ArcFaceError: As ``encode``.
        """
        deadline = Deadline(None)
        size = min(self._ask_shape(deadline).batch, self._connection.crops_of_a_request)
        keyed = ((None, as_batch(batch, color=color)) for batch in batches(crops, size))
        done, bad, embeddings = 0, list[int](), NO_EMBEDDINGS
        for _, embeddings in self._pipeline(keyed, deadline):
            bad += (done + row for row in bad_rows(embeddings))
            done += len(embeddings)
            yield embeddings
        if bad:
            raise NotFiniteError(str(self._target), bad, embeddings[:0])

    def ensure_ready(self, *, timeout_s: float | None = None) -> None:
        """Check that the server answers and serves the model with the contract's tensors.

        Args:
            timeout_s: Seconds that it may take; None leaves it to the requests' own limit.

        Raises:
            ArcFaceError: It does not; the message says why.
        """
        self._ensure_ready(timeout_s)

    def status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models.

        Raises:
            ServerUnavailableError: No server answered.
            DeadlineExceededError: It did not answer in time.
        """
        return self._status()

    def close(self) -> None:
        """Close the connection, unless it is shared; calls that are under way in other threads fail."""
        self._close()

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass
class Call:
    """One gRPC call, which ``close`` or ``drop`` may end."""

    target: Target
    deadline: Deadline
    timeout_s: float
    client: Any
    """tritonclient's client that it goes over."""
    crops: Crops
    result: Future[Any] = field(default_factory=Future)
    handle: Any = None
    is_sent: bool = True

    def cancel(self) -> None:
        """Give up waiting."""
        if self.handle is not None:
            self.handle.cancel()

    def answered(self, result: Any, error: InferenceServerException | None) -> None:
        """Take the answer; called by tritonclient in one of gRPC's threads."""
        if error is None:
            self.result.set_result(result)
        else:
            self.result.set_exception(error)
