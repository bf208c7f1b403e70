"""A Triton server as the pool sees it: a connection that its replicas share, and its models."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..contract import Embeddings
from ..errors import ArcFaceError
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import GoldenReference, golden_crops
from ..models.naming import made_from
from ..models.plan_manifest import PlanManifest
from ..models.release import Release
from ..models.repository import LocalModels
from ..observability.diagnostics import Diagnostics, Source
from ..triton.embed_request import Deadline, EmbedRequest
from ..triton.limits import RequestLimits
from ..triton.status import Target, unanswered
from .discovery import Wanted
from .replica import Cooldown, Intervals, Origin, Replica

if TYPE_CHECKING:
    from ..triton.client import EmbeddingClient


class Server:
    """A Triton server.

    Raises:
        ConfigError: The URL cannot be used. Nothing is sent before the first question.
    """

    def __init__(
        self,
        url: str,
        wanted: Wanted,
        limits: RequestLimits,
        intervals: Intervals,
        records: LocalModels | None,
    ) -> None:
        from ..triton.channel import Connection  # brings gRPC, which a pool without servers does without

        self.url = url
        # Without gRPC's own retries: meanwhile the next replica could have answered.
        self.connection = Connection(url, limits, retries=False)
        self._wanted = wanted
        self._records = records
        self._limits = limits
        self._intervals = intervals
        self._releases: dict[str, Release] = {}
        self._lock = threading.Lock()
        self._calls = 0

    def replicas(self, timeout_s: float) -> list[tuple[Replica, ArcFaceError | None]] | None:
        """Ask for the models, as new replicas, and why each is not ready; None if only requests are answered.

        Raises:
            ServerUnavailableError: It does not answer.
            ModelNotFoundError: It has none of the wanted models.
        """
        asked_at = time.monotonic()
        answer = self.connection.ask(timeout_s)
        if answer.answers:
            ready = {model.name for model in answer.models or () if model.ready}
            for model in filter(self._wanted.has, ready):
                release = self.connection.release(model, timeout_s)
                if release is not None:  # else what it said last still holds
                    self._releases[model] = release
            found = self._wanted.sight(self.url, answer, self._releases)
            return [(self._replica(target), problem) for target, problem in found.items()]
        if self.connection.answered_since(asked_at):
            return None
        raise unanswered(self.url, answer.problem)

    def is_hung(self, timeout_s: float) -> str | None:
        """Why the server counts as hung; None if a question or a request was answered in time."""
        asked_at = time.monotonic()
        if self.connection.is_live(timeout_s) or self.connection.answered_since(asked_at):
            return None
        return f"it did not say within {timeout_s:g} s that it is alive"

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

    def open(self, target: Target, deadline: Deadline) -> ServerModel:
        """Check a model's tensors and read its records; the embedding space is left to the golden check."""
        model, version = str(target.model), target.version
        with self.call():
            if version is None:
                # A pin without a version is held to the version that answers now.
                newest = self.client(model, None, modest=True)
                newest.encode(golden_crops()[:1], timeout_s=deadline.remaining_s())
                version = newest.answered_by
            # A new client, since the model may have come back with another batch size or other tensors.
            client = self.client(model, version)
            client.ensure_ready(timeout_s=deadline.remaining_s())
        reference, plan = None, None
        if self._records is not None and version is not None:
            reference = self._records.golden(model, version)
            plan = self._records.only_plan(model, version)
        return ServerModel(self, client, Source("triton", model, version, self.url, 0), reference, plan)

    def _replica(self, target: Target) -> Replica:
        release = self._releases.get(str(target.model), Release())
        return Replica(
            origin=Origin(
                str(target), lambda _, deadline: self.open(target, deadline), self.url, lambda: self._calls
            ),
            preference=self._wanted.preference(target, release),
            release=self._wanted.release(target, release),
            share=release.share if release.is_canary(target.version) else 0.0,
            cooldown=Cooldown(self._intervals.cooldown_s, self._intervals.longest_cooldown_s),
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
        self.reference = reference
        self.space = EmbeddingSpace() if reference is None else reference.space
        self._server = server
        self._client = client
        self._plan = plan

    def embed(self, request: EmbedRequest) -> None:
        """Embed what a request still misses."""
        with self._server.call():
            self._client.embed_request(request)

    def embed_golden(self, deadline: Deadline) -> Embeddings:
        """Embed the golden crops."""
        return self._golden(self.source.model, deadline)

    def embed_golden_by_sibling(self, deadline: Deadline) -> Embeddings | None:
        """Embed the golden crops with the ONNX model of the same version on the same server."""
        sibling = made_from(self.source.model)
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
            embedding_dim=self._client.embedding_dim,
        )

    def close(self) -> None:
        """The connection is the server's."""

    def _golden(self, model: str, deadline: Deadline) -> Embeddings:
        with self._server.call():
            client = self._server.client(model, self.source.version, modest=True)
            return client.encode(golden_crops(), timeout_s=deadline.remaining_s())
