"""Embedding in this process: the first model of several that loads, and gives what it has to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from ..deadline import Deadline
from ..errors import ClientClosedError, DeploymentError, DriftError, InputError
from ..identity import EmbeddingIdentity
from ..job import Job
from ..meter import Meter
from .base import EmbeddingBackend, Refusal, Served, Source
from .diagnostics import CandidateReport, Diagnostics, Validation
from .local_model import LocalCandidate, LocalModel

_log = logging.getLogger(__name__)

HERE: Final = "this process"


class InProcessBackend(EmbeddingBackend):
    """Embeds with the first of its candidates that can be used; a model that fails gives way to the next.

    The first model that is loaded settles the identity of all embeddings to come: a candidate of another
    one is refused for as long as this object lives.

    Args:
        backend: What was asked for: "tensorrt", "onnxruntime" or "pytorch".
        candidates: Models in order of preference, at least one.
        max_drift_cosine: Largest drift of the golden crops that is let pass.

    Raises:
        InputError: ``max_drift_cosine`` is not above 0.
    """

    def __init__(
        self, backend: str, candidates: Sequence[LocalCandidate], *, max_drift_cosine: float = 0.001
    ) -> None:
        if not max_drift_cosine > 0:
            raise InputError(f"max_drift_cosine is {max_drift_cosine}; expected a number above 0.")
        self._backend = backend
        self._candidates = tuple(candidates)
        self._max_drift_cosine = max_drift_cosine
        self._meter = Meter()
        self._lock = threading.Lock()
        self._closed = False
        self._errors: Mapping[LocalCandidate, DeploymentError] = {}  # replaced, never changed
        self._serving: _Serving | None = None
        self._identity: EmbeddingIdentity | None = None

    def ensure_ready(self) -> None:
        """Load the model, and hold it against its reference where that is known.

        Raises:
            ClientClosedError: The backend was closed.
            DeploymentError: No candidate can be used; the message has each one's reason.
        """
        with self._in_use(Deadline(None)):
            pass

    def diagnostics(self) -> Diagnostics:
        """What serves, how fast, how exactly, and why not another; nothing is loaded for that."""
        serving, errors = self._serving, self._errors  # without the lock, which loading holds for long
        reports = tuple(self._report(candidate, serving, errors) for candidate in self._candidates)
        if serving is None:
            drift = next((report.drift for report in reports if report.drift is not None), None)
            return Diagnostics(
                backend=self._backend,
                validation=Validation(
                    drift_vs_reference=drift,
                    reference=None if drift is None else "manifest",
                    regression_test=None if drift is None else "failed",
                ),
                candidates=reports,
            )
        model = serving.model
        return Diagnostics(
            backend=model.backend,
            model=model.model,
            version=model.version,
            engine_path=str(model.path),
            precision=model.precision,
            sm=model.sm,
            provider=model.provider,
            batch_size=model.batch_size,
            throughput_fps=self._meter.throughput_fps,
            latency_ms=self._meter.latency_ms,
            validation=Validation(
                drift_vs_reference=serving.drift,
                reference="itself" if serving.drift is None else "manifest",
                regression_test=None if serving.drift is None else "passed",
            ),
            candidates=reports,
        )

    def close(self) -> None:
        """Free the model; a call that is under way in another thread still ends as it should."""
        with self._lock:
            self._closed = True
            self._drop()

    def _run(self, job: Job) -> Served:
        sources: list[Source] = []
        while True:
            with self._in_use(job.deadline) as serving:
                before, started = job.missing, time.perf_counter()
                error = None
                try:
                    serving.model.run(job)
                except DeploymentError as failure:
                    error = failure
                done = before - job.missing
                if done:
                    sources.append(serving.source(done))
                if error is None:
                    self._meter.record(done, time.perf_counter() - started)
                    return Served(tuple(sources), self._refusals(serving))
            self._refuse(serving, error)

    @contextmanager
    def _in_use(self, deadline: Deadline) -> Iterator[_Serving]:
        """The model that serves, which is not freed meanwhile; it is loaded first where that is due."""
        while not self._lock.acquire(timeout=deadline.remaining_s(threading.TIMEOUT_MAX)):
            pass  # another thread is loading; the deadline ends the wait
        try:
            if self._closed:
                raise ClientClosedError("The backend was closed; make another one.")
            serving = self._serving = self._serving or self._choose()
            serving.users += 1
        finally:
            self._lock.release()
        try:
            yield serving
        finally:
            with self._lock:
                serving.users -= 1
                serving.free_if_idle()

    def _choose(self) -> _Serving:
        """Load the first candidate that can be used."""
        if len(self._errors) == len(self._candidates):
            self._errors = {}  # what was wrong may have been mended
        for candidate in self._candidates:
            if candidate in self._errors:
                continue
            try:
                serving = self._load(candidate)
            except DeploymentError as error:
                self._errors = {**self._errors, candidate: error}
                continue
            for refused, reason in self._errors.items():
                _log.warning("%s serves, since %s cannot: %s", candidate.name, refused.name, reason)
            return serving
        raise self._exhausted()

    def _load(self, candidate: LocalCandidate) -> _Serving:
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
        self._identity = self._identity or model.identity
        return _Serving(candidate, model, drift)

    def _refuse(self, serving: _Serving, error: DeploymentError) -> None:
        """Let a model that failed give way to the next; raises when there is none."""
        with self._lock:
            if self._serving is serving:  # and not replaced by another thread already
                self._errors = {**self._errors, serving.candidate: error}
                self._drop()
            if len(self._errors) == len(self._candidates):
                raise self._exhausted()

    def _drop(self) -> None:
        if self._serving is not None:
            self._serving.dropped = True
            self._serving.free_if_idle()
            self._serving = None

    def _exhausted(self) -> DeploymentError:
        if len(self._errors) == 1:
            return next(iter(self._errors.values()))
        reasons = "; ".join(f"{candidate.name}: {error}" for candidate, error in self._errors.items())
        return DeploymentError(f"Nothing can embed in this process. {reasons}")

    def _refusals(self, serving: _Serving) -> tuple[Refusal, ...]:
        preferred = self._candidates[: self._candidates.index(serving.candidate)]
        return tuple(
            Refusal(candidate.name, str(self._errors[candidate]))
            for candidate in preferred
            if candidate in self._errors
        )

    def _report(
        self,
        candidate: LocalCandidate,
        serving: _Serving | None,
        errors: Mapping[LocalCandidate, DeploymentError],
    ) -> CandidateReport:
        if serving is not None and serving.candidate is candidate:
            return CandidateReport(candidate=candidate.name, state="serving", drift=serving.drift)
        error = errors.get(candidate)
        if error is None:
            return CandidateReport(candidate=candidate.name, state="standing by")
        drift = error.drift if isinstance(error, DriftError) else None
        return CandidateReport(candidate=candidate.name, state="refused", reason=str(error), drift=drift)


class _Serving:
    """The model that serves, and how many calls are using it."""

    def __init__(self, candidate: LocalCandidate, model: LocalModel, drift: float | None) -> None:
        self.candidate = candidate
        self.model = model
        self.drift = drift
        self.users = 0
        self.dropped = False

    def source(self, crops: int) -> Source:
        return Source(self.model.backend, self.model.model, self.model.version, HERE, crops)

    def free_if_idle(self) -> None:
        if self.dropped and not self.users:
            self.model.runtime.close()
