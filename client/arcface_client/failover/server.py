"""A Triton server as the pool sees it: a connection that its replicas share, and its models."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..contract import Embeddings
from ..errors import ArcFaceError, ServerUnavailableError
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import GoldenReference, golden_crops
from ..models.manifest import PlanManifest
from ..models.naming import sibling_of
from ..observability.diagnostics import Diagnostics, Source
from ..triton.embed_request import Deadline, EmbedRequest
from ..triton.limits import RequestLimits
from .discovery import Candidate, Wanted

if TYPE_CHECKING:
    from ..triton.client import EmbeddingClient


class Records(Protocol):
    """What a model repository that can be read here says of models, as ``LocalModels`` does."""

    def golden(self, model: str, version: int) -> GoldenReference | None:
        """What a version's embeddings of the golden crops must be; None when nothing is recorded."""
        ...

    def only_plan(self, model: str, version: int) -> PlanManifest | None:
        """The record of a version's plan; None when there is none, or several."""
        ...


class Server:
    """A Triton server.

    Raises:
        ConfigError: The URL cannot be used. Nothing is sent before the first question.
    """

    def __init__(self, url: str, limits: RequestLimits, records: Records | None = None) -> None:
        from ..triton.channel import Connection  # brings gRPC, which a pool without servers does without

        self.url = url
        # Without gRPC's own retries: meanwhile the next replica could have answered.
        self.connection = Connection(url, limits.tls, retries=False)
        self.records = records
        self._limits = limits
        self._lock = threading.Lock()
        self._calls = 0

    def models(self, wanted: Wanted, timeout_s: float) -> dict[Candidate, ArcFaceError | None] | None:
        """Ask for the models, and why each is not ready; None if the server answers only requests.

        Raises:
            ServerUnavailableError: It does not answer.
            ModelNotFoundError: It has none of the wanted models.
        """
        asked_at = time.monotonic()
        answer = self.connection.ask(timeout_s)
        if answer.answers:
            return wanted.sight(self.url, answer.models)
        if self.connection.answered_since(asked_at):
            return None
        raise self.gone(answer.problem)

    def is_hung(self, timeout_s: float) -> str | None:
        """Why the server counts as hung; None if a question or a request was answered in time."""
        asked_at = time.monotonic()
        if self.connection.is_live(timeout_s) or self.connection.answered_since(asked_at):
            return None
        return f"it did not say within {timeout_s:g} s that it is alive"

    def gone(self, why: str) -> ServerUnavailableError:
        """The error for a server that does not answer."""
        from ..triton.status import unanswered

        return unanswered(self.url, why)

    def client(self, model: str, version: int | None, *, modest: bool = False) -> EmbeddingClient:
        """A client of one model, over the connection that all share.

        A modest one sends one request at a time, so that a queue has room for others.
        """
        from ..triton.client import EmbeddingClient

        return EmbeddingClient(
            model=model,
            version=version,
            request_timeout_s=self._limits.request_timeout_s,
            max_in_flight=1 if modest else self._limits.max_in_flight,
            connection=self.connection,
        )

    @contextmanager
    def call(self) -> Iterator[None]:
        """Mark a call as being under way here, so that the server's liveness is watched."""
        with self._lock:
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1

    @property
    def busy(self) -> bool:
        """Whether calls are under way here."""
        return self._calls > 0


@dataclass(frozen=True)
class ServerOrigin:
    """A version of a model on a server; see ``Origin``."""

    server: Server
    candidate: Candidate

    @property
    def name(self) -> str:
        """The replica's name."""
        return str(self.candidate)

    @property
    def where(self) -> str:
        """The server's URL."""
        return self.server.url

    def open(self, space: EmbeddingSpace | None, deadline: Deadline) -> ServerModel:
        """Check the model's tensors and read its records; the embedding space is left to the golden check."""
        server, model, version = self.server, self.candidate.model, self.candidate.version
        with server.call():
            if version is None:
                # A pin without a version is held to the version that answers now.
                newest = server.client(model, None, modest=True)
                newest.encode(golden_crops()[:1], timeout_s=deadline.remaining_s())
                version = newest.answered_by
            # A new client, since the model may have come back with another batch size or other tensors.
            client = server.client(model, version)
            client.ensure_ready(timeout_s=deadline.remaining_s())
        reference, plan = None, None
        if server.records is not None and version is not None:
            reference = server.records.golden(model, version)
            plan = server.records.only_plan(model, version)
        return ServerModel(server, client, Source("triton", model, version, server.url, 0), reference, plan)


class ServerModel:
    """A model on a server that is ready to embed; see ``Model``."""

    def __init__(
        self,
        server: Server,
        client: EmbeddingClient,
        source: Source,
        reference: GoldenReference | None,
        plan: PlanManifest | None,
    ) -> None:
        self.source = source
        self.golden = None if reference is None else reference.embeddings
        self.space = EmbeddingSpace() if reference is None else reference.space
        self._server = server
        self._client = client
        self._plan = plan

    def embed(self, request: EmbedRequest) -> None:
        """Embed what a request still misses."""
        with self._server.call():
            self._client.embed(request)

    def embed_golden(self, deadline: Deadline) -> Embeddings:
        """Embed the golden crops."""
        return self._golden(self.source.model, deadline)

    def embed_golden_by_sibling(self, deadline: Deadline) -> Embeddings | None:
        """Embed the golden crops with the ONNX model of the same version on the same server."""
        sibling = sibling_of(self.source.model)
        return None if sibling is None else self._golden(sibling, deadline)

    def diagnostics(self) -> Diagnostics:
        """What it is."""
        model, version, where = self.source.model, self.source.version, self.source.where
        return Diagnostics(
            backend="triton",
            model=model,
            version=version,
            engine_path=f"{where}/{model}/{version or ''}".rstrip("/"),
            precision=None if self._plan is None else self._plan.identity.precision,
            sm=None if self._plan is None else self._plan.identity.sm,
            batch_size=self._client.max_batch_size,
        )

    def close(self) -> None:
        """The connection is the server's."""

    def _golden(self, model: str, deadline: Deadline) -> Embeddings:
        with self._server.call():
            client = self._server.client(model, self.source.version, modest=True)
            return client.encode(golden_crops(), timeout_s=deadline.remaining_s())
