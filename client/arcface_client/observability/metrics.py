"""Counters and speed of a backend's calls, and how Prometheus reads them."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ..errors import ArcFaceError, InputError, require
from .diagnostics import CandidateReport, Served, Source

LATENCY_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets, in seconds; one more bucket has the rest."""

_SOURCE_LABELS: Final = ("backend", "model", "version", "where")
_RECENT_CALLS: Final = 256


class Metrics:
    """Counters of a backend's calls, and the speed of the last ones. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, ...]] = Counter()
        self._faces: Counter[tuple[str, ...]] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._calls_fell_back = 0
        self._errors: Counter[str] = Counter()
        self._buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self._seconds = 0.0
        # Begin and end of the last calls, in seconds, and their faces.
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=_RECENT_CALLS)

    def served(self, served: Served, seconds: float) -> None:
        """Count a call that was served, took ``seconds`` and ends now."""
        now = time.monotonic()
        with self._lock:
            for source in served.sources:
                labels = _labels(source)
                self._calls[labels] += 1
                self._faces[labels] += source.crops
            self._calls_fell_back += served.fell_back
            self._buckets[bisect.bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
            self._seconds += seconds
            faces = sum(source.crops for source in served.sources)
            self._recent.append((now - seconds, now, faces))

    def failed(self, error: ArcFaceError) -> None:
        """Count a call that ended in an error."""
        with self._lock:
            self._errors[type(error).__name__] += 1

    def fell_back(self, reason: str) -> None:
        """Count that a replica left a call to the next one."""
        with self._lock:
            self._fallbacks[reason] += 1

    @property
    def throughput_fps(self) -> float | None:
        """Faces a second of wall-clock time in which calls were under way; None before the first call."""
        with self._lock:
            calls = sorted(self._recent)
        busy_s, busy_until = 0.0, -math.inf
        for start, end, _ in calls:
            busy_s += max(0.0, end - max(start, busy_until))
            busy_until = max(busy_until, end)
        return sum(faces for _, _, faces in calls) / busy_s if busy_s else None

    @property
    def latency_ms(self) -> float | None:
        """Median time of the last calls in milliseconds; None before the first call."""
        with self._lock:
            seconds = [end - start for start, end, _ in self._recent]
        return 1e3 * statistics.median(seconds) if seconds else None

    def snapshot(self) -> dict[str, Any]:
        """The counters as they are now, for JSON."""
        with self._lock:
            return {
                "sources": [
                    dict(zip(_SOURCE_LABELS, labels, strict=True))
                    | {"calls": calls, "faces": self._faces[labels]}
                    for labels, calls in self._calls.items()
                ],
                "calls_fell_back": self._calls_fell_back,
                "fallbacks": dict(self._fallbacks),
                "errors": dict(self._errors),
            }

    def histogram(self) -> tuple[list[tuple[str, float]], float]:
        """Calls by time, cumulated by upper bound as Prometheus has them, and the sum in seconds."""
        with self._lock:
            counts, seconds = itertools.accumulate(self._buckets), self._seconds
            return list(zip([*map(str, LATENCY_BOUNDS_S), "+Inf"], map(float, counts), strict=True)), seconds


class PrometheusExporter:
    """Gives the counters to a Prometheus registry when it is scraped; calls cost nothing more.

    Args:
        metrics: The counters.
        reports: Returns every candidate's state.
        registry: The registry; each backend needs its own, since two would export the same series.
        shadow: Returns what shadow traffic found; None without shadow traffic.

    Raises:
        InputError: It is not a registry, or has another backend's metrics.
        MissingExtraError: prometheus-client is not installed.
    """

    def __init__(
        self,
        metrics: Metrics,
        reports: Callable[[], Sequence[CandidateReport]],
        registry: Any,
        shadow: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> None:
        self._core = require("prometheus_client.core", extra="metrics", purpose="Prometheus metrics")
        if not isinstance(registry, self._core.CollectorRegistry):
            raise InputError(f"registry is {registry!r}; expected a prometheus_client.CollectorRegistry.")
        self._metrics = metrics
        self._reports = reports
        self._shadow = shadow
        self._registry = registry
        try:
            registry.register(self)
        except ValueError as error:
            raise InputError(
                "The registry already has the metrics of another backend; give each backend its own registry."
            ) from error

    def close(self) -> None:
        """Take the counters out of the registry."""
        self._registry.unregister(self)

    def describe(self) -> Iterator[Any]:
        """Yield one family, by which the registry recognises a second backend."""
        yield self._core.CounterMetricFamily("arcface_client_calls", "Calls of encode.")

    def collect(self) -> Iterator[Any]:
        """Yield the metric families; called by the registry."""
        core, counters = self._core, self._metrics.snapshot()
        for name, text in (
            ("calls", "Calls of encode in which a source embedded crops."),
            ("faces", "Faces embedded."),
        ):
            samples = [([one[label] for label in _SOURCE_LABELS], one[name]) for one in counters["sources"]]
            yield self._counter(name, text, _SOURCE_LABELS, samples)
        for name, text, label in (
            ("fallbacks", "Calls that a replica left to the next one.", "reason"),
            ("errors", "Calls that ended in an error.", "error"),
        ):
            samples = [([value], count) for value, count in counters[name].items()]
            yield self._counter(name, text, [label], samples)
        yield self._counter(
            "calls_fell_back",
            "Calls of which another replica than the first choice embedded crops.",
            [],
            [([], counters["calls_fell_back"])],
        )
        buckets, seconds = self._metrics.histogram()
        yield core.HistogramMetricFamily(
            "arcface_client_call_seconds",
            "Time that calls of encode took.",
            buckets=buckets,
            sum_value=seconds,
        )
        states = core.GaugeMetricFamily(
            "arcface_client_candidate",
            "1 for the state of each candidate.",
            labels=["candidate", "state"],
        )
        drift = core.GaugeMetricFamily(
            "arcface_client_candidate_drift",
            "Largest drift of the golden crops at the last check of each candidate.",
            labels=["candidate"],
        )
        for report in self._reports():
            states.add_metric([report.candidate, report.state], 1)
            if report.drift is not None:
                drift.add_metric([report.candidate], report.drift)
        yield from (states, drift)
        shadow = self._shadow()
        if shadow is not None:
            yield from self._of_shadow(shadow)

    def _of_shadow(self, shadow: Mapping[str, Any]) -> Iterator[Any]:
        yield self._counter(
            "shadow_crops",
            "Live crops for the comparison, by result.",
            ["result"],
            [([result], count) for result, count in shadow["crops"].items()],
        )
        drift = self._core.HistogramMetricFamily(
            "arcface_client_shadow_drift", "Drift of live crops from the ONNX sibling.", labels=["candidate"]
        )
        for candidate, figures in shadow["drift"].items():
            counts = map(float, itertools.accumulate(figures["histogram"].values()))
            buckets = list(zip(figures["histogram"], counts, strict=True))
            drift.add_metric([candidate], buckets, sum_value=figures["sum"])
        yield drift

    def _counter(
        self, name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]
    ) -> Any:
        family = self._core.CounterMetricFamily(f"arcface_client_{name}", text, labels=labels)
        for values, count in samples:
            family.add_metric(values, count)
        return family


def _labels(source: Source) -> tuple[str, ...]:
    version = "" if source.version is None else str(source.version)
    return source.backend, source.model, version, source.where
