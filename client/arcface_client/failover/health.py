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
from ..triton.status import unanswered
from .golden_check import golden_check
from .pool import ReplicaPool
from .replica import Intervals, Replica
from .server import Server

LIST_S: Final = 2.0
"""How long a server may take to list its models, in seconds."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Health:
    """Watches over a pool; its threads begin with the first ``look`` or ``load``."""

    def __init__(self, pool: ReplicaPool, servers: Sequence[Server], intervals: Intervals) -> None:
        self.has_looked = False
        self._pool = pool
        self._servers = tuple(servers)
        self._intervals = intervals
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None
        self._under_way: dict[tuple[str, bool], Future[object]] = {}
        # A thread for each, since either may take long.
        self._workers = {kind: ThreadPoolExecutor(1, f"arcface-{kind}") for kind in ("check", "load")}

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

    def recheck(self) -> None:
        """Begin a round in another thread, unless one is under way."""
        self._share("check", lambda: self._round(afresh=False))

    def check_liveness(self) -> None:
        """Ask each server with calls under way whether it is alive; drop the connection of one that hangs."""
        for server in self._servers:
            why = server.is_hung(self._intervals.liveness_s) if server.busy else None
            if why is not None and self._can_do_without(server):
                self._pool.server_failed(server.url, unanswered(server.url, why))
                server.connection.drop(why)

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
        for server in self._servers:
            self._list(server)
        for replica in sorted(self._pool.ranking.replicas, key=lambda replica: replica.release):
            known = self._pool.get(replica.name)
            if known is not None and not known.is_local and known.is_due(afresh=afresh):
                error = self._check(known)
                if isinstance(error, ServerUnavailableError):
                    self._pool.server_failed(known.origin.where, error)
        self._load_again()
        self.has_looked = True
        self._pool.rank()

    def _list(self, server: Server) -> None:
        """Tell the pool what a server lists, if it answers the question."""
        try:
            listed = server.replicas(LIST_S)
        except ArcFaceError as error:
            if not self._ended.is_set():
                self._pool.listed(server.url, (), error)
            return
        if listed is not None:
            self._pool.listed(server.url, listed, None)

    def _check(self, replica: Replica) -> ArcFaceError | None:
        """Let a replica pass the golden check; returns why it did not."""
        deadline = Deadline(None if replica.is_local else self._intervals.check_s)
        try:
            model = replica.origin.open(self._pool.known_space, deadline)
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
            if replica.model is None and replica.is_due(afresh=afresh):
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

    def _can_do_without(self, server: Server) -> bool:
        """Whether another replica can serve; if none can, it is better to wait for the server."""
        places = {replica.origin.where for replica in self._pool.ranking.serving}
        if places == {server.url} and self._pool.has_local:
            self._share("load", lambda: self._load((), afresh=False))
        return places != {server.url}


def _tick(health: weakref.ref[Health], ended: threading.Event, intervals: Intervals) -> None:
    """Let what is due begin, until the object is closed or gone: the thread does not keep it alive."""
    now = time.monotonic()
    round_at, liveness_at = now + intervals.recheck_s, now + intervals.liveness_s
    while not ended.wait(max(0.0, min(round_at, liveness_at) - time.monotonic())):
        alive = health()
        if alive is None:
            return
        now = time.monotonic()
        with suppress(ArcFaceError):  # closed meanwhile, or the token's file is gone
            if now >= round_at:
                round_at = now + intervals.recheck_s
                alive.recheck()
            if now >= liveness_at:
                liveness_at = now + intervals.liveness_s
                alive.check_liveness()
        del alive


def _log_bug(done: Future[Any]) -> None:
    """Log what was not raised on purpose: in the background there may be no caller to raise it to."""
    error = None if done.cancelled() else done.exception()
    if error is not None and not isinstance(error, ArcFaceError):
        _log.error("A health check of the embedder failed; it goes on", exc_info=error)
