"""The backend over a pool of replicas: models on Triton servers, models in this process, or both."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from ..errors import ArcFaceError, ClientClosedError, ConfigError, InputError
from ..failover.call import Call, no_candidate
from ..failover.discovery import Pin, Wanted
from ..failover.health import Health
from ..failover.pool import ReplicaPool
from ..failover.replica import Intervals, Origin, local_replicas
from ..failover.server import Server
from ..models.embedding_space import FLOAT, EmbeddingSpace, SpaceName
from ..models.repository import LocalModels
from ..observability.diagnostics import Diagnostics, Served, Source
from ..observability.metrics import Metrics, PrometheusExporter
from ..triton.embed_request import Deadline, EmbedRequest
from ..triton.fork_guard import ForkGuard
from ..triton.limits import (
    DEFAULT_MAX_DRIFT_COSINE,
    RequestLimits,
)
from .base import EmbeddingBackend

DEFAULT_NAME: Final = "arcface_r100"


class PooledBackend(EmbeddingBackend):
    """Embeds with the best replica of a pool that is there and right, and falls back to the next.

    Nothing is sent or loaded before ``ensure_ready`` or the first ``encode``; from then on threads in the
    background check the replicas until ``close``.

    Args:
        backend: What was asked for: "triton", "tensorrt", "onnxruntime" or "insightface".
        local: Models in this process, by preference; they come after all servers'.
        servers: Triton servers, by preference.
        max_drift_cosine: Largest drift of a replica's golden embeddings from the reference.
        space: The class of precision to take, "float" or "int8"; None takes any.
        intervals: How often replicas are checked.
        patience_s: How long a call without a deadline waits, without progress, for a full queue.
        registry: A Prometheus registry for the counters.

    Raises:
        InputError: ``max_drift_cosine`` is not a positive number.
        MissingExtraError: A registry was given, but prometheus-client is not installed.
    """

    def __init__(
        self,
        backend: str,
        local: Sequence[Origin] = (),
        *,
        servers: Sequence[Server] = (),
        max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE,
        space: SpaceName | None = FLOAT,
        intervals: Intervals | None = None,
        patience_s: float = RequestLimits.request_timeout_s,
        registry: Any = None,
    ) -> None:
        if not max_drift_cosine > 0:
            raise InputError(f"max_drift_cosine is {max_drift_cosine}; expected a number above 0.")
        intervals = intervals or Intervals()
        self.metrics = Metrics()
        self._backend = backend
        self._fork_guard = ForkGuard("The embedder")
        self._patience_s = patience_s
        urls = tuple(server.url for server in servers)
        self._pool = ReplicaPool(local_replicas(local), urls, max_drift_cosine, intervals, space)
        self._health = Health(self._pool, servers, intervals)
        self._closed = threading.Event()
        self._exporter = None
        if registry is not None:
            self._exporter = PrometheusExporter(self.metrics, self._pool.reports, registry)

    def ensure_ready(self) -> None:
        """Check every replica on the servers; where none serves, load the best model in this process.

        Replicas that failed are tried again at once.

        Raises:
            InputError: The backend was closed, or belongs to the process that this one was forked from.
            NoCandidateNowError: None serves, but one may in a moment.
            NoCandidateError: None can serve; the message lists them all.
        """
        self._fork_guard.check()
        self._check_open()
        self._pool.release()
        self._health.look(Deadline(None), afresh=True)
        first = self._pool.ranking.first
        if first is None or first.is_local:
            self._health.load(Deadline(None), afresh=True)
        if self._pool.ranking.first is None:
            raise no_candidate(self._pool.ranking.refused)

    def diagnostics(self) -> Diagnostics:
        """Which replica serves, how fast, how exactly, and why no other; nothing is asked or loaded."""
        self._fork_guard.check()
        known = Diagnostics(backend=self._backend)
        ranking = self._pool.ranking
        if not self._closed.is_set():
            first = ranking.first
            if first is not None and first.model is not None:
                known = first.model.diagnostics()
            checked = first or next((one for one in ranking.replicas if one.finding is not None), None)
            if checked is not None and checked.finding is not None:
                known = replace(known, validation=checked.finding.validation(passed=first is not None))
            known = replace(known, candidates=self._pool.reports())
        return replace(
            known,
            throughput_fps=self.metrics.throughput_fps,
            latency_ms=self.metrics.latency_ms,
            counters=self.metrics.snapshot(),
        )

    def space(self) -> EmbeddingSpace:
        """The embedding space that the first replica which passed its golden check settled."""
        settled = self._pool.space
        return EmbeddingSpace() if settled is None else settled.space

    def close(self) -> None:
        """End the background threads and the connections, and free the models.

        Calls to a server that are under way fail; a model in this process is freed behind its last call.
        """
        if self._fork_guard.is_forked or self._closed.is_set():
            return  # what there is to close is the parent's
        self._closed.set()
        self._pool.close()  # first, so that a model that is just being loaded is freed
        self._health.close()
        if self._exporter is not None:
            self._exporter.close()

    def run(self, request: EmbedRequest) -> Served:
        """Embed what a request still misses; see ``EmbeddingBackend.run``."""
        self._fork_guard.check()
        self._check_open()
        space = self._pool.space
        if not request.missing and space is not None:
            request.set_width(space.embeddings.shape[1])
            return Served(())
        started = time.perf_counter()
        call = Call(
            request,
            self._pool,
            self._health,
            self.metrics,
            patience_s=self._patience_s,
            pause=self._pause,
        )
        try:
            while True:
                replica, model = call.next()
                try:
                    model.embed(request)
                except ArcFaceError as error:
                    call.failed(replica, model, error)
                else:
                    served = call.succeeded(replica, model)
                    self.metrics.served(served, time.perf_counter() - started)
                    return served
        except ArcFaceError as error:
            self.metrics.failed(error)
            raise

    def hold(self, source: Source, error: ArcFaceError) -> None:
        """Take the replica that is the source of a call out of service until ``ensure_ready``."""
        self._pool.hold(source, error)

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)
        self._check_open()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClientClosedError("The embedder is closed; make a new one.")


class TritonBackend(PooledBackend):
    """Embeds with the models of one or several Triton servers.

    ::

        with TritonBackend("localhost:8001", "arcface_r100") as embedder:
            embeddings, served = embedder.encode(crops, return_source=True)

    Args:
        urls: ``host:port`` of a server's gRPC service, or of several, best first.
        name: Base name of the models; ``models.naming.family_models`` has their order. The newest version of
            each goes first.
        candidates: Models to use instead of those, best first, for example "arcface_r100_trt:3".
        local: Models in this process for when no server's model serves; loaded at first need.
        records: The model repository, where it can be read from here; see ``LocalModels``.
        max_drift_cosine: Largest drift of a candidate's golden embeddings from the reference.
        space: The class of precision to take, "float" or "int8"; None takes any.
        limits: Limits and certificates of requests.
        spread: Whether all servers are as good, so that each call goes to the one with the fewest under way.
        intervals: How often candidates are checked.
        registry: A Prometheus registry for the counters; one embedder for each registry.

    Raises:
        ConfigError: A URL or a candidate cannot be read.
        InputError: ``max_drift_cosine`` is not a positive number.
        MissingExtraError: A registry was given, but prometheus-client is not installed.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        name: str = DEFAULT_NAME,
        candidates: Sequence[str] = (),
        *,
        local: Sequence[Origin] = (),
        records: LocalModels | None = None,
        max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE,
        space: SpaceName | None = FLOAT,
        limits: RequestLimits | None = None,
        spread: bool = False,
        intervals: Intervals | None = None,
        registry: Any = None,
    ) -> None:
        listed = (urls,) if isinstance(urls, str) else tuple(dict.fromkeys(urls))
        if not listed:
            raise ConfigError("There is no server's URL; expected one or more, for example localhost:8001.")
        limits, intervals = limits or RequestLimits(), intervals or Intervals()
        pins = tuple(map(Pin.parse, candidates))
        wanted = Wanted(listed, name, pins, records.models(name) if records else (), spread)
        super().__init__(
            "triton",
            local,
            servers=[Server(url, wanted, limits, intervals, records) for url in listed],
            max_drift_cosine=max_drift_cosine,
            space=space,
            intervals=intervals,
            patience_s=limits.request_timeout_s,
            registry=registry,
        )
