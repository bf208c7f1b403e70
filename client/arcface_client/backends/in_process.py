"""Embedding in this process: the first model of several that loads, and gives what it has to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from ..errors import ClientClosedError, DeploymentError, detached
from ..models.embedding_space import EmbeddingSpace
from ..observability.diagnostics import Diagnostics
from ..observability.meter import Meter
from ..observability.metrics import Metrics, PrometheusExporter
from ..observability.served import Served, Source
from ..triton.deadline import Deadline
from ..triton.embed_request import EmbedRequest
from ..triton.forks import MadeHere
from ..triton.limits import DEFAULT_MAX_DRIFT_COSINE, check_max_drift_cosine
from .base import EmbeddingBackend
from .description import describe
from .local_model import LocalCandidate
from .refused import Refused
from .serving import Serving

_log = logging.getLogger(__name__)


class InProcessBackend(EmbeddingBackend):
    """Embeds with the first of its candidates that can be used; a model that fails gives way to the next.

    What failed is tried again: by ``ensure_ready``, and after a while in the background, while the next one
    serves. The identity that is given, or else the first model that is loaded, settles that of all embeddings
    to come: a candidate of another one is refused for as long as this object lives.

    Args:
        backend: What was asked for: "tensorrt", "onnxruntime" or "insightface".
        candidates: Models in order of preference, at least one.
        identity: Of all embeddings; None lets the first model that is loaded settle it.
        max_drift_cosine: Largest drift of the golden crops that is let pass.
        registry: A Prometheus registry that is to have the counters.
        clock: Seconds, monotonic.

    Raises:
        InputError: ``max_drift_cosine`` is not above 0.
        MissingExtraError: A registry was given, but prometheus-client is not installed.
    """

    def __init__(
        self,
        backend: str,
        candidates: Sequence[LocalCandidate],
        *,
        identity: EmbeddingSpace | None = None,
        max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE,
        registry: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_max_drift_cosine(max_drift_cosine)
        self._made_here = MadeHere("The embedder")
        self._backend = backend
        self._candidates = tuple(candidates)
        self._max_drift_cosine = max_drift_cosine
        self._meter = Meter()
        self._metrics = Metrics()
        self._lock = threading.Lock()
        self._closed = False
        self._refused = Refused(clock)
        self._serving: Serving | None = None
        self._identity = identity
        # A thread of its own, so that no call waits for it longer than it may.
        self._loader = ThreadPoolExecutor(1, "arcface-loading")
        self._loading: Future[None] | None = None
        self._exporter = None
        if registry is not None:
            self._exporter = PrometheusExporter(
                self._metrics, lambda: self.diagnostics().candidates, registry
            )

    def ensure_ready(self) -> None:
        """Load the best model that can be used, and hold it against its reference where that is known.

        Candidates that failed are tried again, those included that are preferred to the one that serves.

        Raises:
            InputError: The backend was closed, or is that of a process from which this one was forked.
            DeploymentError: No candidate can be used; the message has each one's reason.
        """
        self._made_here.check()
        with self._lock:
            loading = self._begin_loading(afresh=True)
        Deadline(None).result_of(loading)

    def diagnostics(self) -> Diagnostics:
        """What serves, how fast, how exactly, and why not another; nothing is loaded for that."""
        self._made_here.check()
        # Without the lock: each of these is replaced, never changed.
        said = describe(self._backend, self._serving, self._candidates, self._refused.errors(), self._meter)
        return replace(said, counters=self._metrics.snapshot())

    def close(self) -> None:
        """Free the model; a call that is under way in another thread still ends as it should."""
        if self._made_here.is_forked:
            return  # what there is to free is the parent's
        with ExitStack() as unlocked, self._lock:
            if self._closed:
                return
            self._closed = True
            self._drop(unlocked)
        self._loader.shutdown()
        if self._exporter is not None:
            self._exporter.close()

    def run(self, job: EmbedRequest) -> Served:
        """Embed what a job still misses; see ``EmbeddingBackend.run``."""
        self._made_here.check()
        self._check_open()
        return self._metrics.count(self._embed, job)[0] if job.missing else Served(())

    def _embed(self, job: EmbedRequest) -> Served:
        sources: list[Source] = []
        failed: dict[LocalCandidate, DeploymentError] = {}
        while True:
            with self._in_use(job.deadline) as serving:
                before, started = job.missing, time.perf_counter()
                error = None
                try:
                    serving.model.run(job)
                except DeploymentError as failure:
                    error = detached(failure)
                done = before - job.missing
                if done:
                    sources.append(serving.source(done))
                if error is None:
                    self._meter.record(done, time.perf_counter() - started)
                    refusals = self._refused.refusals(self._preferred_to(serving), failed)
                    return Served(tuple(sources), refusals)
            failed[serving.candidate] = error
            self._refuse(serving, error)

    @contextmanager
    def _in_use(self, deadline: Deadline) -> Iterator[Serving]:
        """The model that serves, which is not freed meanwhile; it is loaded first where that is due."""
        serving = self._take(deadline)
        try:
            yield serving
        finally:
            with self._lock:
                is_done = serving.leave()
            if is_done:
                serving.free()

    def _take(self, deadline: Deadline) -> Serving:
        while True:
            with self._lock:
                self._check_open()
                serving = self._serving
                loading = self._loading
                if serving is None or any(map(self._refused.is_due, self._preferred_to(serving))):
                    loading = self._begin_loading()
                if serving is not None:
                    serving.enter()
                    return serving
            assert loading is not None
            deadline.result_of(loading)

    def _begin_loading(self, *, afresh: bool = False) -> Future[None]:
        """Let the best candidate be loaded; with the lock held."""
        self._check_open()
        if afresh or self._loading is None or self._loading.done():
            self._loading = self._loader.submit(self._load_best, afresh)
        return self._loading

    def _load_best(self, afresh: bool) -> None:
        """Load the first candidate that can be used, unless it serves already.

        Args:
            afresh: Also try those that are to be left alone.
        """
        with self._lock:
            # Where nobody is left, it may have been mended what was wrong.
            afresh = afresh or (self._serving is None and self._all_left_alone())
        for candidate in self._candidates:
            with self._lock:
                self._check_open()
                if self._serving is not None and self._serving.candidate is candidate:
                    return
                if not afresh and self._refused.is_left_alone(candidate):
                    continue
            try:
                serving = self._load(candidate)
            except DeploymentError as error:
                with self._lock:
                    self._refused.add(candidate, error)
            else:
                self._replace(serving)
                return
        with self._lock:
            raise self._refused.all_failed()

    def _load(self, candidate: LocalCandidate) -> Serving:
        model = candidate.load(self._identity)
        try:
            conflict = self._identity and self._identity.conflict(model.identity)
            if conflict:
                raise DeploymentError(
                    f"{model.path} is of {conflict}. Their embeddings do not go together: make a new backend."
                )
            drift = model.examine(self._max_drift_cosine)
        except BaseException:
            model.runtime.close()
            raise
        return Serving(candidate, model, drift)

    def _replace(self, serving: Serving) -> None:
        """Let a model serve that was just loaded."""
        with ExitStack() as unlocked, self._lock:
            if self._closed:
                unlocked.callback(serving.free)
            self._check_open()
            replaced = self._serving
            self._drop(unlocked)
            self._serving = serving
            self._identity = (self._identity or EmbeddingSpace()).completed(serving.model.identity)
            self._refused.remove(serving.candidate)
            errors = self._refused.errors()
        if replaced is not None:
            _log.warning("%s serves again, instead of %s", serving.candidate.name, replaced.candidate.name)
        for preferred in self._preferred_to(serving):
            self._metrics.fell_back(type(errors[preferred]).__name__)
            _log.warning(
                "%s serves, since %s cannot: %s", serving.candidate.name, preferred.name, errors[preferred]
            )

    def _refuse(self, serving: Serving, error: DeploymentError) -> None:
        """Let a model that failed give way to the next; raises when there is none."""
        with ExitStack() as unlocked, self._lock:
            if self._serving is serving:  # and not replaced by another thread already
                self._refused.add(serving.candidate, error)
                self._drop(unlocked)
            if self._all_left_alone():
                raise self._refused.all_failed()

    def _drop(self, unlocked: ExitStack) -> None:
        """Let nothing serve; what did is freed without the lock, or by the last call that uses it."""
        dropped, self._serving = self._serving, None
        if dropped is not None and dropped.drop():
            unlocked.callback(dropped.free)

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("The backend was closed; make another one.")

    def _all_left_alone(self) -> bool:
        return all(map(self._refused.is_left_alone, self._candidates))

    def _preferred_to(self, serving: Serving) -> tuple[LocalCandidate, ...]:
        return self._candidates[: self._candidates.index(serving.candidate)]
