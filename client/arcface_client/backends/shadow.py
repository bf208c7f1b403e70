"""Shadow traffic: a second backend embeds a share of the live crops as well, to see whether both agree."""

from __future__ import annotations

import bisect
import logging
import random
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from ..contract import Crops, Embeddings
from ..errors import ArcFaceError, DriftError, InputError
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import drifts
from ..models.naming import made_from
from ..observability.diagnostics import Diagnostics, Served, Source
from ..observability.metrics import PrometheusExporter
from ..triton.embed_request import Deadline, EmbedRequest
from .base import EmbeddingBackend
from .pooled import PooledBackend

QUEUE_CROPS: Final = 256
"""Crops that wait to be compared; further ones are dropped."""

LONGEST_SHADOW_S: Final = 10.0
"""How long the second backend may take for a sample, in seconds."""

BOUNDS: Final = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Upper bounds of the drift histogram's buckets; one more has the rest."""

CASES: Final = 3
"""So many crops beyond the tolerance take a plan out of service; a single one may not be a face at all."""

AMONG: Final = 256
"""They must be among so many crops that were compared one after the other."""

_log = logging.getLogger(__name__)


class _Drift:
    """The drift of one plan's live crops."""

    def __init__(self) -> None:
        self.count = self.beyond = 0
        self.total = self.largest = 0.0
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.recent: deque[float] = deque(maxlen=AMONG)

    def add(self, drift: float, max_drift: float) -> DriftError | None:
        """Count a crop; returns an error when enough of the last ones were beyond the tolerance."""
        self.count += 1
        self.total += drift
        self.largest = max(self.largest, drift)
        self.buckets[bisect.bisect_left(BOUNDS, drift)] += 1
        self.recent.append(drift)
        if drift <= max_drift:
            return None
        self.beyond += 1
        beyond = [one for one in self.recent if one > max_drift]
        if len(beyond) < CASES:
            return None
        self.recent.clear()
        return DriftError(
            f"{len(beyond)} of the last {AMONG} live crops that were compared drift up to {max(beyond):.2g} "
            f"from the ONNX model; max_drift_cosine allows {max_drift:g}. It stays out until ensure_ready().",
            max(beyond),
        )

    def snapshot(self) -> dict[str, Any]:
        """For JSON: count, mean, max, sum, beyond, and the histogram by upper bound."""
        bounds = [*map(str, BOUNDS), "+Inf"]
        return {
            "count": self.count,
            "mean": self.total / self.count if self.count else None,
            "max": self.largest if self.count else None,
            "sum": self.total,
            "beyond": self.beyond,
            "histogram": dict(zip(bounds, self.buckets, strict=True)),
        }


class ShadowBackend(EmbeddingBackend):
    """A backend whose plans are compared with a second backend on live crops, in a thread of its own.

    Only crops of calls that a single plan served are compared. A plan that drifts beyond the limit is taken
    out of service until ``ensure_ready``, and the primary backend falls back to its next replica.

    Args:
        primary: Serves the calls; closed with this.
        shadow: Embeds the share as well, for example the ONNX sibling; closed with this.
        rate: Share of the crops, 0 to 1.
        max_drift_cosine: Largest drift that is allowed.
        registry: A Prometheus registry for the counters of the primary backend and the drift.

    Raises:
        InputError: The rate is out of its range.
    """

    def __init__(
        self,
        primary: PooledBackend,
        shadow: EmbeddingBackend,
        rate: float,
        max_drift_cosine: float,
        *,
        registry: Any = None,
    ) -> None:
        if not 0 <= rate <= 1:
            raise InputError(f"shadow_rate is {rate}; expected a share from 0 to 1.")
        self._primary = primary
        self._shadow = shadow
        self._rate = rate
        self._max_drift = max_drift_cosine
        self._lock = threading.Lock()
        self._waiting = 0
        self._results: Counter[str] = Counter(compared=0, dropped=0, failed=0)
        self._drift: dict[str, _Drift] = {}
        self._worker = ThreadPoolExecutor(1, "arcface-shadow")
        self._exporter = None
        if registry is not None:
            self._exporter = PrometheusExporter(
                primary.metrics, lambda: primary.diagnostics().candidates, registry, self._snapshot
            )

    def ensure_ready(self) -> None:
        """Check the primary backend; see ``EmbeddingBackend.ensure_ready``."""
        self._primary.ensure_ready()

    def diagnostics(self) -> Diagnostics:
        """What the primary backend says, and the drift of live crops."""
        return replace(self._primary.diagnostics(), shadow=self._snapshot())

    def space(self) -> EmbeddingSpace:
        """The embedding space of the primary backend."""
        return self._primary.space()

    def close(self) -> None:
        """Close both backends; what waits is not compared any more."""
        self._primary.close()
        self._shadow.close()
        self._worker.shutdown(cancel_futures=True)
        if self._exporter is not None:
            self._exporter.close()
            self._exporter = None

    def run(self, request: EmbedRequest) -> Served:
        """Embed with the primary backend, and keep a share of the crops to compare; never waits for it."""
        served = self._primary.run(request)
        if len(served.sources) == 1 and made_from(served.sources[0].model):
            self._offer(request, served.sources[0])
        return served

    def _offer(self, request: EmbedRequest, source: Source) -> None:
        chosen = [row for row in range(len(request.crops)) if random.random() < self._rate]
        with self._lock:
            rows = chosen[: QUEUE_CROPS - self._waiting]
            self._results["dropped"] += len(chosen) - len(rows)
            self._waiting += len(rows)
        if not rows:
            return
        # Copies, since the caller may change both arrays from now on.
        with suppress(RuntimeError):  # closed since the call was served
            self._worker.submit(self._compare, source, request.crops[rows], request.embeddings[rows])

    def _compare(self, source: Source, crops: Crops, embeddings: Embeddings) -> None:
        """Embed a sample again and compare."""
        request, result = EmbedRequest(crops, Deadline(LONGEST_SHADOW_S)), "failed"
        found: list[DriftError] = []
        try:
            served = self._shadow.run(request)
            # Only models of one version come from the same source.
            if all(one.version == source.version for one in served.sources):
                found = self._count(source, drifts(embeddings, request.embeddings).tolist())
                result = "compared"
        except ArcFaceError as error:
            _log.debug("A sample of %d crops was not compared: %s", len(crops), error)
        finally:
            with self._lock:
                self._waiting -= len(crops)
                self._results[result] += len(crops)
        if found:
            self._primary.hold(source, found[0])

    def _count(self, source: Source, values: list[float]) -> list[DriftError]:
        with self._lock:
            drift = self._drift.setdefault(str(source), _Drift())
            found = [drift.add(each, self._max_drift) for each in values]
        return [error for error in found if error is not None]

    def _snapshot(self) -> dict[str, Any]:
        with self._lock:
            drift = {name: one.snapshot() for name, one in self._drift.items()}
            return {"rate": self._rate, "crops": dict(self._results), "drift": drift}
