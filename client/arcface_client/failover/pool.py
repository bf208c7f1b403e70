"""The pool of replicas: which serve now, in what order, and why the others do not."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ..errors import (
    ArcFaceError,
    DeadlineExceededError,
    DeploymentError,
    ModelNotFoundError,
    NotReleasedError,
    OtherEmbeddingSpaceError,
    ServerError,
    ServerUnavailableError,
    TransientError,
    detached,
    joined,
)
from ..models.embedding_space import EmbeddingSpace, SpaceName
from ..models.golden import GoldenReference
from ..models.release import NOT_THE_RELEASE
from ..observability.diagnostics import CandidateReport, Source
from .golden_check import Finding, Model, objection
from .replica import Intervals, Replica

LOG_INTERVAL_S: Final = 60.0
"""How often the log may say that a replica left a call to the next one for the same reason, in seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Ranking:
    """What the pool knew at a moment: every replica by preference, and those that may serve, best first.

    Replicas in cooldown come last. ``silent`` says, by URL, why no replica is known of a server.
    """

    replicas: tuple[Replica, ...] = ()
    serving: tuple[Replica, ...] = ()
    urls: tuple[str, ...] = ()
    silent: Mapping[str, ArcFaceError] = field(default_factory=dict)

    @property
    def first(self) -> Replica | None:
        """The replica that gets every call it can take."""
        return self.serving[0] if self.serving else None

    def order(self, draw: float) -> tuple[Replica, ...]:
        """Those that may serve, for a call that drew a number from 0 to 1: a canary may go first.

        Of those that are preferred alike, the one goes first whose server has the fewest calls under way.
        """
        now = time.monotonic()

        def place(one: Replica) -> tuple[bool, bool, tuple[int, ...], int, float]:
            cooling, alike = one.cooldown.active(now), random.random()
            return draw >= one.share, cooling, one.preference, one.origin.calls(), alike

        return tuple(sorted(self.serving, key=place))

    @property
    def refused(self) -> dict[str, ArcFaceError]:
        """Why replicas and servers do not serve, by name."""
        known = {replica.name: replica.error for replica in self.replicas if replica.error is not None}
        return known | {anything_at(url): error for url, error in self.silent.items()}

    def preferred_to(self, replica: Replica) -> tuple[Replica, ...]:
        """Every replica that comes before another one by preference, whether it may serve or not."""
        return tuple(
            other
            for other in self.replicas
            if other.preference < replica.preference and other.name != replica.name  # it may have moved up
        )

    def passed_over(self, by: Replica) -> dict[str, str]:
        """In place of which replicas and servers a replica serves, and why."""
        place = self.urls.index(by.origin.where) if by.origin.where in self.urls else len(self.urls)
        reasons = {anything_at(url): str(self.silent[url]) for url in self.urls[:place] if url in self.silent}
        behind = [other.name for other in self.serving]
        behind = behind[behind.index(by.name) :] if by.name in behind else []
        for other in self.preferred_to(by):
            is_meant = isinstance(other.error, (OtherEmbeddingSpaceError, NotReleasedError))
            if other.error is not None and not is_meant:
                reasons[other.name] = str(other.error)
            elif other.name in behind:
                reasons[other.name] = "it failed a moment ago and is cooling down"
        return reasons


def anything_at(url: str) -> str:
    """The name in reports for whatever a silent server may have."""
    return f"any model at {url}"


class ReplicaPool:
    """Keeps every replica of an embedder, and the embedding space that they share. Thread-safe.

    ``ranking`` is replaced, never changed, so calls read it without a lock. The pool itself asks no server
    and loads no model: ``Health`` does, and reports here. Replicas in this process (``local``) come after all
    servers'; both are ordered by preference.
    """

    def __init__(
        self,
        local: Sequence[Replica],
        urls: tuple[str, ...],
        max_drift: float,
        intervals: Intervals,
        wanted: SpaceName | None = None,
    ) -> None:
        self.ranking = Ranking(tuple(local), (), urls)
        self.space: GoldenReference | None = None
        self._settled_by = ""
        self.has_local = bool(local)
        self.intervals = intervals
        self._max_drift = max_drift
        self._wanted = wanted
        self._lock = threading.Lock()
        self._first: str | None = None
        self._has_served = self._is_announced = False
        self._closed = False
        self._logged_at: dict[tuple[str, str], float] = {}

    @property
    def known_space(self) -> EmbeddingSpace | None:
        """What is known of the embedding space: what was settled, or before that, what is asked for."""
        if self.space is not None:
            return self.space.space
        return None if self._wanted is None else EmbeddingSpace(precision_class=self._wanted)

    def get(self, name: str) -> Replica | None:
        """A replica as it is now."""
        return next((replica for replica in self.ranking.replicas if replica.name == name), None)

    def listed(
        self, url: str, seen: Sequence[tuple[Replica, ArcFaceError | None]], problem: ArcFaceError | None
    ) -> None:
        """Take what a server listed: the replicas there, as new ones, and why one is not ready.

        ``problem`` is why the server lists nothing; None if it does.
        """
        now = time.monotonic()

        def change(known: dict[str, Replica]) -> Iterable[Replica]:
            for new, error in seen:
                replica = replace(
                    known.pop(new.name, new),
                    preference=new.preference,
                    release=new.release,
                    share=new.share,
                )
                yield replica.listed() if error is None else replica.out(error, now, check_at=math.inf)
            for replica in known.values():
                if replica.origin.where == url:
                    gone = problem or ModelNotFoundError("the server does not list it any more")
                    yield replica.out(gone, now, check_at=math.inf)
                else:
                    yield replica

        self._change(change, silent={url: None if problem is None else detached(problem)})

    def checked(self, name: str, model: Model, finding: Finding) -> DeploymentError | None:
        """Take the result of a golden check; returns why the replica may not serve, None if it may.

        The first replica that passes settles the embedding space.
        """
        now, problems = time.monotonic(), list[DeploymentError]()

        def take(replica: Replica) -> Replica:
            problem = objection(finding, self.space, self._settled_by, self._max_drift, self._wanted)
            if problem is None and not replica.held:
                if self.space is None:
                    self.space, self._settled_by = finding.reference, name
                # Else two replicas that both agree with the space could contradict each other.
                space = self.space.space.completed(finding.reference.space)
                self.space = replace(self.space, space=space)
                return replica.passed(model, finding, now, self.intervals)
            if problem is None:
                return replica
            problems.append(problem)
            # A model of another space stays one; a wrong one may be fixed.
            steady = isinstance(problem, OtherEmbeddingSpaceError)
            again_s = self.intervals.prove_again_s if steady else self.intervals.refused_again_s
            return replace(replica.out(problem, now, check_at=now + again_s), finding=finding)

        is_first = self.space is None
        self._change_one(name, take, opened=model)
        if is_first and self.space is not None and self.space.space.is_int8:
            _log.warning(
                "%s computes in int8: its embeddings are not comparable with those of any other model", name
            )
        return problems[0] if problems else None

    def unchecked(self, name: str, error: ArcFaceError) -> None:
        """A golden check ended in an error."""
        now = time.monotonic()
        later = now + self.intervals.refused_again_s

        def take(replica: Replica) -> Replica:
            if isinstance(error, TransientError) and replica.model is not None:
                # It was right a while ago, and calls will show whether it is still there.
                return replace(replica, check_at=later)
            # A replica that hangs would delay every round.
            soon = isinstance(error, TransientError) and not isinstance(error, DeadlineExceededError)
            return replica.out(error, now, check_at=-math.inf if soon else later)

        self._change_one(name, take)

    def succeeded(self, replica: Replica) -> None:
        """A call to a replica succeeded."""
        known = self.get(replica.name)
        if known is not None and known.cooldown.failures:
            self._change_one(replica.name, lambda known: replace(known, cooldown=known.cooldown.succeeded()))

    def failed(self, replica: Replica, error: ArcFaceError) -> None:
        """A call to a replica failed, and not because of the caller."""
        if isinstance(error, ServerUnavailableError):
            self.server_failed(replica.origin.where, error)
            return
        # A model in this process, and one whose server answers, may do better with the next crops.
        certain = not (isinstance(error, (DeadlineExceededError, ServerError)) or replica.is_local)
        now = time.monotonic()

        def take(known: Replica) -> Replica:
            return known if known.model is None else known.failed(error, now, certain=certain)

        self._change_one(replica.name, take)

    def server_failed(self, url: str, error: ArcFaceError) -> None:
        """A server does not answer: none of its replicas can serve."""
        now = time.monotonic()

        def change(known: dict[str, Replica]) -> Iterable[Replica]:
            for replica in known.values():
                is_there = replica.origin.where == url
                yield replica.out(error, now, check_at=math.inf) if is_there else replica

        self._change(change)

    def hold(self, source: Source, error: ArcFaceError) -> None:
        """Keep the replica that is a call's source out of service until ``release``."""
        now = time.monotonic()
        for replica in self.ranking.serving:
            if replica.model is not None and replace(source, crops=0) == replica.model.source:
                self._change_one(replica.name, lambda known: replace(known.out(error, now), held=True))

    def release(self) -> None:
        """End what holds replicas back; they still have to pass their golden check."""
        now = time.monotonic()
        self._change(
            lambda known: [
                replace(replica, held=False, cooldown=replica.cooldown.ended(now))
                for replica in known.values()
            ]
        )

    def left_a_call(self, replica: Replica, error: ArcFaceError) -> None:
        """Log that a replica left a call to the next one, once a minute for each kind of error."""
        key, now = (replica.name, type(error).__name__), time.monotonic()
        with self._lock:
            if now - self._logged_at.get(key, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
                return
            self._logged_at[key] = now
        _log.log(_level(error), "%s leaves a call to the next replica: %s", replica.name, error)

    def rank(self) -> None:
        """Rank anew, since cooldowns end. From the first time on, changes are logged."""
        self._is_announced = True
        self._change(lambda known: known.values())

    def reports(self) -> tuple[CandidateReport, ...]:
        """Every replica, by preference, and the servers of which none is known."""
        ranking, now = self.ranking, time.monotonic()
        return tuple(_report(replica, ranking, now) for replica in ranking.replicas) + tuple(
            CandidateReport(candidate=anything_at(url), state=_state_of(error), reason=str(error))
            for url, error in ranking.silent.items()
        )

    def close(self) -> None:
        """Free every model; what is opened from now on is freed at once."""
        with self._lock:
            self._closed = True
        self._change(lambda known: [replace(replica, model=None) for replica in known.values()])

    def _change_one(
        self, name: str, take: Callable[[Replica], Replica], *, opened: Model | None = None
    ) -> None:
        self._change(
            lambda known: [take(one) if one.name == name else one for one in known.values()], opened=opened
        )

    def _change(
        self,
        change: Callable[[dict[str, Replica]], Iterable[Replica]],
        *,
        silent: Mapping[str, ArcFaceError | None] | None = None,
        opened: Model | None = None,
    ) -> None:
        """Replace the ranking; models that no replica has any more are freed."""
        with self._lock:
            before = self.ranking
            replicas = list(change({replica.name: replica for replica in before.replicas}))
            if self._closed:
                replicas = [replace(replica, model=None) for replica in replicas]
            # By name as well: calls that are spread have equal ones, and a change of the first is logged.
            replicas.sort(key=lambda replica: (replica.preference, replica.name))
            known = {replica.origin.where for replica in replicas}
            silences = dict(before.silent) | dict(silent or {})
            after = self.ranking = Ranking(
                tuple(replicas),
                _serving(replicas),
                before.urls,
                {url: why for url, why in silences.items() if why is not None and url not in known},
            )
            told = self._news(after) if self._is_announced and not self._closed else None
        # Without the lock: freeing may take long, and a handler of the log may ask for the reports.
        kept = {id(replica.model) for replica in replicas}
        dropped = {id(one.model): one.model for one in before.replicas} | {id(opened): opened}
        for model in dropped.values():
            if model is not None and id(model) not in kept:
                model.close()
        if told is not None:
            _log.log(*told)

    def _news(self, after: Ranking) -> tuple[int, str] | None:
        """What to log of a change of the first replica, and how loudly."""
        before, first = self._first, after.first
        self._first = None if first is None else first.name
        if self._first == before:
            return None
        if first is None:
            reason = after.refused.get(before or "", "it is gone")
            return logging.WARNING, f"No candidate serves now; the last was {before}: {reason}"
        had_served, self._has_served = self._has_served, True
        if before is not None:
            error = after.refused.get(before)
            reason = error or f"{first.name} is preferred"
            return _level(error), f"{first.name} serves now instead of {before}: {reason}"
        passed_over = after.passed_over(first)
        why = joined(f"{name} does not: {reason}" for name, reason in passed_over.items())
        level = logging.WARNING if passed_over or had_served else logging.INFO
        return level, f"{first.name} serves{'. ' if why else ''}{why}"


def _serving(replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    now = time.monotonic()
    good = [replica for replica in replicas if replica.model is not None]
    return tuple(sorted(good, key=lambda replica: replica.cooldown.active(now)))  # stable


def _level(error: ArcFaceError | None) -> int:
    return logging.INFO if isinstance(error, NotReleasedError) else logging.WARNING


def _state_of(error: ArcFaceError) -> str:
    if isinstance(error, NotReleasedError):
        return NOT_THE_RELEASE
    return "failing" if isinstance(error, (TransientError, ServerError)) else "refused"


def _report(replica: Replica, ranking: Ranking, now: float) -> CandidateReport:
    is_cooling = replica.cooldown.active(now)
    if replica.error is not None:
        state = _state_of(replica.error)
    elif ranking.first is replica:
        state = "serving"
    else:
        state = "cooling down" if is_cooling else "canary" if replica.share else "standing by"
    return CandidateReport(
        candidate=replica.name,
        state=state,
        reason=None if replica.error is None else str(replica.error),
        drift=None if replica.finding is None else replica.finding.drift,
    )
