"""Keeps a pool up to date in the background: which models servers list, golden checks, hung servers."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

from ..errors import ArcFaceError, ClientClosedError, InputError, ServerUnavailableError
from ..triton.embed_request import Deadline
from .discovery import Candidate, Wanted
from .golden_check import golden_check
from .pool import ReplicaPool
from .replica import Cooldown, Intervals, Replica
from .server import Server, ServerOrigin

LIST_S: Final = 2.0
"""How long a server may take to list its models, in seconds."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Health:
    """Watches over a pool; its threads begin with the first ``look`` or ``load``."""

    def __init__(
        self, pool: ReplicaPool, servers: Sequence[Server], wanted: Wanted | None, intervals: Intervals
    ) -> None:
        self.has_looked = False
        self._pool = pool
        self._servers = tuple(servers)
        self._wanted = wanted
        self._intervals = intervals
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None
        self._under_way: dict[tuple[str, bool], Future[object]] = {}
        # A thread for each, since a golden check or a load may take long and a hung server must not wait.
        self._workers = {
            kind: ThreadPoolExecutor(1, f"arcface-{kind}") for kind in ("check", "load", "liveness")
        }

    def look(self, deadline: Deadline, *, afresh: bool = False) -> None:
        """Wait until every server was asked for its models, and what is new or due was checked.

        With ``afresh``, every replica that does not serve is checked at once.

        Raises:
            DeadlineExceededError: The time is up.
        """
        self._result(self._share("check", lambda: self._round(afresh), afresh=afresh), deadline)

    def load(self, deadline: Deadline, *, but: Collection[str] = (), afresh: bool = False) -> Replica | None:
        """The best replica in this process, loaded if need be; None if none can be used.

        Replicas named in ``but`` are not used. With ``afresh``, models that just failed are tried, too.

        Raises:
            InputError: The settings name something that does not exist.
            DeadlineExceededError: The time is up.
        """
        return self._result(self._begin("load", lambda: self._load(but, afresh)), deadline)

    def tick(self, *, is_round_due: bool, is_liveness_due: bool) -> None:
        """Begin what is due, in other threads."""
        with suppress(ClientClosedError):
            if is_round_due:
                self._share("check", lambda: self._round(afresh=False))
            if is_liveness_due and any(server.busy for server in self._servers):
                self._share("liveness", self._check_liveness)

    def close(self) -> None:
        """End the threads and the connections; calls that are under way fail."""
        with self._lock:
            self._ended.set()
        for server in self._servers:
            server.connection.close()
        for worker in self._workers.values():
            worker.shutdown(cancel_futures=True)

    def _begin(self, kind: str, work: Callable[[], T]) -> Future[T]:
        with self._lock:
            if self._ended.is_set():
                raise ClientClosedError("The embedder is closed; make a new one.")
            if self._ticker is None:
                arguments = (weakref.ref(self), self._ended, self._intervals)
                self._ticker = threading.Thread(
                    target=_tick, args=arguments, name="arcface-health", daemon=True
                )
                self._ticker.start()
            begun = self._workers[kind].submit(work)
        begun.add_done_callback(_log_bug)
        return begun

    def _share(self, kind: str, work: Callable[[], object], *, afresh: bool = False) -> Future[object]:
        """The work of that kind that is under way; otherwise begin it."""
        with self._lock:
            shared = self._under_way.get((kind, afresh))
            if shared is None or shared.done():
                shared = self._under_way[kind, afresh] = self._begin(kind, work)
        return shared

    def _result(self, future: Future[T], deadline: Deadline) -> T:
        try:
            return deadline.result_of(future)
        except concurrent.futures.CancelledError as error:
            raise ClientClosedError("The embedder was closed during the call; make a new one.") from error

    def _round(self, afresh: bool) -> None:
        ready: set[str] = set()
        for server in self._servers:
            ready |= self._list(server)
        for replica in sorted(self._pool.ranking.replicas, key=lambda replica: replica.release):
            known = self._pool.get(replica.name)
            if known is None or known.name not in ready or not _is_due(known, afresh=afresh):
                continue
            error = self._check(known)
            if isinstance(error, ServerUnavailableError):
                self._pool.server_failed(known.origin.where, error)
                ready -= {
                    one.name for one in self._pool.ranking.replicas if one.origin.where == known.origin.where
                }
        self._load_again()
        self.has_looked = True
        self._pool.rank()

    def _list(self, server: Server) -> set[str]:
        """Tell the pool what a server lists; returns the names of the replicas that are ready."""
        assert self._wanted is not None
        try:
            sightings = server.models(self._wanted, LIST_S)
        except ArcFaceError as error:
            if not self._ended.is_set():
                self._pool.listed(server.url, (), error)
            return set()
        if sightings is None:
            return set()
        seen = [(self._replica(server, candidate), problem) for candidate, problem in sightings.items()]
        self._pool.listed(server.url, seen, None)
        return {replica.name for replica, problem in seen if problem is None}

    def _replica(self, server: Server, candidate: Candidate) -> Replica:
        assert self._wanted is not None
        return Replica(
            origin=ServerOrigin(server, candidate),
            preference=self._wanted.preference(candidate),
            release=self._wanted.release(candidate),
            cooldown=Cooldown(self._intervals.cooldown_s, self._intervals.longest_cooldown_s),
        )

    def _check(self, replica: Replica) -> ArcFaceError | None:
        """Let a replica pass the golden check; returns why it did not."""
        deadline = Deadline(None if replica.is_local else self._intervals.check_s)
        space = self._pool.space
        try:
            model = replica.origin.open(None if space is None else space.reference.space, deadline)
            try:
                finding = golden_check(model, deadline)
            except BaseException:
                model.close()
                raise
        except ArcFaceError as error:
            if not self._ended.is_set():
                self._pool.unchecked(replica.name, error)
                if isinstance(error, InputError):  # a setting that only the caller can change
                    raise
            return error
        return self._pool.checked(replica.name, model, finding)

    def _load(self, but: Collection[str], afresh: bool) -> Replica | None:
        for replica in self._pool.ranking.replicas:
            if not replica.is_local or replica.name in but or self._ended.is_set():
                continue
            if replica.model is None and _is_due(replica, afresh=afresh):
                self._check(replica)
            known = self._pool.get(replica.name)
            if known is not None and known.model is not None:
                return known
        return None

    def _load_again(self) -> None:
        """Load a model in this process again that failed and is preferred to what serves."""
        for replica in self._pool.ranking.replicas:
            if replica.model is not None:
                return
            if replica.is_local and replica.error and not replica.cooldown.active(time.monotonic()):
                self._share("load", lambda: self._load((), afresh=False))

    def _check_liveness(self) -> None:
        for server in self._servers:
            why = server.is_hung(self._intervals.liveness_s) if server.busy else None
            if why is not None and self._can_do_without(server):
                self._pool.server_failed(server.url, server.gone(why))
                server.connection.drop(why)

    def _can_do_without(self, server: Server) -> bool:
        """Whether another replica can serve; if none can, it is better to wait for the server."""
        places = {replica.origin.where for replica in self._pool.ranking.serving}
        if places == {server.url} and self._pool.has_local:
            self._share("load", lambda: self._load((), afresh=False))
        return places != {server.url}


def _is_due(replica: Replica, *, afresh: bool) -> bool:
    if replica.held:
        return False
    return (afresh and replica.model is None) or time.monotonic() >= replica.check_at


def _tick(health: weakref.ref[Health], ended: threading.Event, intervals: Intervals) -> None:
    """Let what is due begin, until the object is closed or gone: the thread does not keep it alive."""
    now = time.monotonic()
    round_at, liveness_at = now + intervals.recheck_s, now + intervals.liveness_s
    while not ended.wait(max(0.0, min(round_at, liveness_at) - time.monotonic())):
        alive = health()
        if alive is None:
            return
        now = time.monotonic()
        is_round_due, is_liveness_due = now >= round_at, now >= liveness_at
        alive.tick(is_round_due=is_round_due, is_liveness_due=is_liveness_due)
        del alive
        round_at = now + intervals.recheck_s if is_round_due else round_at
        liveness_at = now + intervals.liveness_s if is_liveness_due else liveness_at


def _log_bug(done: Future[Any]) -> None:
    """Log what was not raised on purpose: in the background there may be no caller to raise it to."""
    error = None if done.cancelled() else done.exception()
    if error is not None and not isinstance(error, ArcFaceError):
        _log.error("A health check of the embedder failed; it goes on", exc_info=error)
