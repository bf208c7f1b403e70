"""The backend of Triton servers: the best candidate that is there and right, else the next, and so on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from ..errors import ArcFaceError, ClientClosedError, ConfigError, InputError
from ..failover.call import nobody
from ..failover.discovery import Pin, Wanted
from ..failover.examiner import Examiner, Plans, no_records
from ..failover.golden_check import References
from ..failover.health import Watcher
from ..failover.intervals import Rhythm
from ..failover.pool import Selector
from ..failover.replica import Contender
from ..failover.run import FIRST_LOOK_S, Fallback
from ..failover.server import RequestLimits
from ..observability.diagnostics import CandidateReport, Diagnostics, Validation
from ..observability.meter import Meter
from ..observability.metrics import Metrics, PrometheusExporter
from ..observability.served import HERE, Served
from ..triton.deadline import Deadline
from ..triton.embed_request import EmbedRequest
from ..triton.forks import MadeHere
from ..triton.limits import DEFAULT_MAX_DRIFT_COSINE, check_max_drift_cosine
from .base import EmbeddingBackend
from .last_resort import LastResort, MakeBackend
from .shadow import Shadow

DEFAULT_NAME: Final = "arcface_r100"


class TritonBackend(EmbeddingBackend):
    """Embeds by whichever candidate of one or several Triton servers is there, right and preferred.

    ::

        with TritonBackend("localhost:8001", "arcface_r100") as embedder:
            embeddings, served = embedder.encode(crops, return_source=True)

    Nothing is sent before ``ensure_ready`` or the first ``encode``; from then on two threads in the
    background look after the candidates until ``close``.

    Args:
        urls: ``host:port`` of a server's gRPC service, or of several, best first.
        name: Base name of the models: ``{name}_trt`` is preferred to ``{name}_onnx``, newest version first.
        candidates: Models to use instead of those, best first: "arcface_r100_trt:3", "arcface_r100_onnx".
        references: What is recorded of a model's version here, as ``LocalModels.golden``.
        plans: What is recorded of its plan here, as ``LocalModels.only_plan``.
        max_drift_cosine: Largest drift of a candidate's golden embeddings from the reference.
        last_resort: Makes the backend in this process for when no candidate serves, for a release or (None)
            the newest one; None allows no such thing.
        limits: Limits and certificates of requests.
        rhythm: How often candidates are looked at, and when one is left alone.
        shadow_rate: Share of the live crops, 0 to 1, that the sibling embeds as well, to compare.
        registry: A Prometheus registry that is to have the counters.

    Raises:
        ConfigError: A URL or a candidate cannot be read.
        InputError: ``max_drift_cosine`` is no positive number, or ``shadow_rate`` no share.
        MissingExtraError: A registry was given, but prometheus-client is not installed.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        name: str = DEFAULT_NAME,
        candidates: Sequence[str] = (),
        *,
        references: References = no_records,
        plans: Plans = no_records,
        max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE,
        last_resort: MakeBackend | None = None,
        limits: RequestLimits | None = None,
        rhythm: Rhythm | None = None,
        shadow_rate: float = 0.0,
        registry: Any = None,
    ) -> None:
        check_max_drift_cosine(max_drift_cosine)
        limits = limits or RequestLimits()
        wanted = Wanted(_urls(urls), name, tuple(map(Pin.parse, candidates)))
        self._rhythm = rhythm or Rhythm()
        self._made_here = MadeHere("The embedder")
        self._metrics = Metrics()
        self._meter = Meter()
        examiner = Examiner(references, max_drift_cosine, plans)
        self._selector = Selector(wanted, examiner, limits, self._rhythm)
        self._shadow = Shadow(self._selector, shadow_rate, max_drift_cosine)
        self._last_resort = None if last_resort is None else LastResort(last_resort, self._selector, examiner)
        self._fallback = Fallback(
            self._selector,
            self._last_resort,
            self._metrics,
            patience_s=limits.request_timeout_s,
            pause=self._pause,
        )
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher: Watcher | None = None
        self._exporter = None
        if registry is not None:
            self._exporter = PrometheusExporter(
                self._metrics, self._selector.reports, registry, self._shadow.snapshot
            )

    def ensure_ready(self) -> None:
        """Find and examine the candidates anew; where none serves, load the last resort.

        Raises:
            NoCandidateNowError: None serves, but one may in a moment.
            NoCandidateError: None can serve; the message lists them all.
        """
        self._made_here.check()
        self._begin()
        standing = self._selector.look(Deadline(None), afresh=True, timeout_s=FIRST_LOOK_S)
        if standing.ranking:
            return
        reasons = dict(standing.refused)
        if self._last_resort is not None:
            try:
                self._last_resort.ensure_ready()
            except InputError:
                raise
            except ArcFaceError as error:
                reasons[HERE] = error
            else:
                return
        raise nobody(reasons)

    def diagnostics(self) -> Diagnostics:
        """Which candidate serves, how fast, how exactly, and why no other; nobody does once it is closed."""
        self._made_here.check()
        known = Diagnostics(backend="triton")
        if not self._closed.is_set():
            known = replace(self._who_serves(), candidates=self._reports())
        return replace(
            known,
            throughput_fps=self._meter.throughput_fps,
            latency_ms=self._meter.latency_ms,
            counters=self._metrics.snapshot(),
            shadow=self._shadow.snapshot(),
        )

    def close(self) -> None:
        """End the background threads and the connections; calls that are under way fail."""
        if self._made_here.is_forked:
            return  # what there is to close is the parent's
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        # First the threads that would take closed connections for servers that are gone.
        if self._watcher is not None:
            self._watcher.close()
        self._selector.close()
        self._shadow.close()
        if self._last_resort is not None:
            self._last_resort.close()
        if self._exporter is not None:
            self._exporter.close()

    def run(self, job: EmbedRequest) -> Served:
        """Embed what a job still misses; see ``EmbeddingBackend.run``."""
        self._made_here.check()
        self._check_open()
        if not job.missing:
            return Served(())
        if not self._selector.has_looked:
            self._begin()
        served, seconds = self._metrics.count(self._fallback.run, job)
        self._meter.record(len(job.crops), seconds)
        self._shadow.offer(job, served)
        return served

    def _reports(self) -> tuple[CandidateReport, ...]:
        """The servers' candidates, and this process where it may serve at last."""
        reports = tuple(self._selector.reports())
        if self._last_resort is None:
            return reports
        problem = self._last_resort.problem
        if problem is not None:
            state = "failing"
        elif self._selector.standing.ranking or self._last_resort.loaded is None:
            state = "standing by"
        else:
            state = "serving"
        return (*reports, CandidateReport(candidate=HERE, state=state, reason=problem))

    def _who_serves(self) -> Diagnostics:
        ranking = self._selector.standing.ranking
        loaded = None if self._last_resort is None else self._last_resort.loaded
        if not ranking:
            return Diagnostics(backend="triton") if loaded is None else loaded.diagnostics()
        first = ranking[0]
        where, model, version, plan = first.candidate.url, first.candidate.model, first.version, first.plan
        return Diagnostics(
            backend="triton",
            model=model,
            version=version,
            engine_path=f"{where}/{model}/{version or ''}".rstrip("/"),
            precision=None if plan is None else plan.identity.precision,
            sm=None if plan is None else plan.identity.sm,
            batch_size=first.client.max_batch_size,
            validation=_validation(first),
        )

    def _begin(self) -> None:
        """Start to watch."""
        with self._lock:
            self._check_open()
            if self._watcher is None:
                self._watcher = Watcher(self._selector, self._last_resort, self._rhythm)

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)
        self._check_open()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClientClosedError("The embedder is closed; make a new one.")


def _urls(urls: str | Sequence[str]) -> tuple[str, ...]:
    listed = (urls,) if isinstance(urls, str) else tuple(urls)
    if not listed:
        raise ConfigError("There is no server's URL; expected one or more, as localhost:8001.")
    return tuple(dict.fromkeys(listed))


def _validation(contender: Contender) -> Validation:
    finding = contender.finding
    if finding is None:
        return Validation()
    return Validation(
        drift_vs_reference=finding.drift,
        reference=finding.compared_with,
        regression_test=None if finding.drift is None else "passed",
    )
