"""Shadow traffic: a share of the live crops goes to the sibling as well, to see whether both agree."""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ..contract import Crops, Embeddings
from ..errors import ArcFaceError, DriftError, InputError
from ..failover.discovery import Candidate
from ..failover.golden_check import Evidence
from ..failover.pool import Selector
from ..failover.repeater import Repeater
from ..failover.replica import Contender
from ..models.golden import drifts
from ..models.naming import is_plan
from ..observability.served import Served
from ..triton.deadline import Deadline
from ..triton.embed_request import EmbedRequest
from .drift_record import DriftRecord

QUEUE_CROPS: Final = 256
"""Crops that wait at most; further ones are dropped."""

WAIT_S: Final = 1.0
"""How long to wait for a sample before it is seen whether there is still an embedder, in seconds."""

LONGEST_SHADOW_S: Final = 10.0
"""How long the sibling may take for a sample, in seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Live crops, and what the one that served made of them."""

    by: Contender
    crops: Crops
    embeddings: Embeddings


class Shadow:
    """Compares a plan with its ONNX sibling on live crops, in a thread of its own.

    A plan is what is judged, whichever of the two served: the ONNX model is what it was compiled from.
    Where there is no such pair, nothing is sent.

    Args:
        selector: Which candidate serves, and which others may; told of a plan that is wrong.
        rate: Share of the crops, 0 to 1.
        max_drift: Largest drift that is allowed.

    Raises:
        InputError: The rate is out of its range.
    """

    def __init__(self, selector: Selector, rate: float, max_drift: float) -> None:
        if not 0 <= rate <= 1:
            raise InputError(f"shadow_rate is {rate}; expected a share from 0 to 1.")
        self._selector = selector
        self._rate = rate
        self._max_drift = max_drift
        self._changed = threading.Condition()
        self._owed = 0.0
        self._waiting: deque[_Sample] = deque()
        self._results: Counter[str] = Counter(compared=0, dropped=0, failed=0)
        self._records: dict[Contender, DriftRecord] = {}
        self._repeater: Repeater | None = None
        self._closed = False

    def offer(self, job: EmbedRequest, served: Served) -> None:
        """Take a share of the crops of a call that was served; never waits."""
        count = self._due(len(job.crops)) if self._rate else 0
        by = self._server_of(served) if count else None
        if by is None or self._sibling(by) is None:
            return
        with self._changed:
            room = max(0, QUEUE_CROPS - sum(len(sample.crops) for sample in self._waiting))
            self._results["dropped"] += count - min(count, room)
            if not room or self._closed:
                return
            # Copies, since both arrays are the caller's from now on.
            rows = sorted(random.sample(range(len(job.crops)), min(count, room)))
            self._waiting.append(_Sample(by, job.crops[rows], job.embeddings[rows]))
            if self._repeater is None:
                self._repeater = Repeater(self._compare_next, 0.0, "arcface-shadow")
            self._changed.notify()

    def snapshot(self) -> dict[str, Any] | None:
        """What was found so far, for JSON; None when it is off."""
        if not self._rate:
            return None
        with self._changed:
            drift = {str(plan): record.snapshot() for plan, record in self._records.items()}
            return {"rate": self._rate, "crops": dict(self._results), "drift": drift}

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; what waits is not compared any more."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self._repeater is not None:
            self._repeater.close(timeout_s)

    def _due(self, crops: int) -> int:
        """How many of a call's crops are to be compared, so that it comes to the rate over time."""
        with self._changed:
            self._owed += crops * self._rate
            count = int(self._owed)
            self._owed -= count
        return count

    def _server_of(self, served: Served) -> Contender | None:
        """The candidate that did all of a call; None when several shared it, or none did."""
        if len(served.sources) != 1:
            return None
        source = served.sources[0]
        candidate = Candidate(source.where, source.model, source.version)
        # A pin without a version is known by the one that answered, as the source is.
        ranking = self._selector.standing.ranking
        return next(
            (one for one in ranking if replace(one.candidate, version=one.version) == candidate), None
        )

    def _sibling(self, contender: Contender) -> Contender | None:
        """The best candidate of the other kind."""
        ranking = self._selector.standing.ranking
        return next((other for other in ranking if _is_plan(other) != _is_plan(contender)), None)

    def _compare_next(self) -> None:
        """Wait for a sample, and compare it; without one for a while, do nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, WAIT_S)
            if not self._waiting:
                return
            sample = self._waiting.popleft()
        sibling = self._sibling(sample.by)
        compared = 0
        try:
            compared = 0 if sibling is None else self._compare(sample, sibling)
        finally:
            with self._changed:
                self._results["compared"] += compared
                self._results["dropped" if sibling is None else "failed"] += len(sample.crops) - compared

    def _compare(self, sample: _Sample, sibling: Contender) -> int:
        """Let the sibling embed a sample and judge by it; returns for how many crops it had the time."""
        server = sibling.server
        client = server.client(sibling.candidate.model, sibling.version, modest=True)
        job = EmbedRequest(sample.crops, Deadline(LONGEST_SHADOW_S))
        try:
            with server.call():
                client.work(job)
        except ArcFaceError as error:
            # Calls find out whether it still serves; a shadow only asks what it can spare.
            _log.debug("No shadow of %s, or of a part alone: %s", sibling, error)
        there = job.mark()
        plan, onnx = (sample.by, sibling) if _is_plan(sample.by) else (sibling, sample.by)
        expected = job.embeddings if onnx is sibling else sample.embeddings
        drift = drifts(sample.embeddings[there], job.embeddings[there])
        self._judge(plan, onnx, sample.crops[there], expected[there], drift)
        return len(drift)

    def _judge(
        self, plan: Contender, onnx: Contender, crops: Crops, expected: Embeddings, drift: Any
    ) -> None:
        with self._changed:
            record = self._records.setdefault(plan, DriftRecord(self._max_drift))
            for row, value in enumerate(drift.tolist()):
                record.add(value, (crops[row], expected[row]))
            proof = record.proof()
        if proof is None:
            return
        evidence = Evidence(
            np.stack([crop for crop, _ in proof.cases]),
            np.stack([embedding for _, embedding in proof.cases]),
            str(onnx),
        )
        message = (
            f"{len(proof.cases)} of the last {proof.among} live crops that were compared drift up to "
            f"{proof.largest:.2g} from {onnx}; max_drift_cosine allows {self._max_drift:g}"
        )
        self._selector.demote(plan, evidence, DriftError(message, proof.largest))


def _is_plan(contender: Contender) -> bool:
    return is_plan(contender.candidate.model)
