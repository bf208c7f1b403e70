"""The last resort: a model in this process, loaded when no server serves, and let go when one does again."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from ..errors import ArcFaceError, ClientClosedError, DeadlineExceededError, detached
from ..failover.examiner import Examiner
from ..failover.pool import LONGEST_LOOK_S, Selector
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import golden_crops
from ..observability.served import Served, Source
from ..triton.deadline import Deadline
from ..triton.embed_request import EmbedRequest
from .base import EmbeddingBackend

IDLE_S: Final = 300.0
"""How long it is kept after its last call, in seconds."""

TRY_AGAIN_S: Final = 30.0
"""How long a failure to load it is taken for granted, in seconds."""

MakeBackend = Callable[[EmbeddingSpace | None], EmbeddingBackend]
"""Makes the backend of an identity; None settles one."""

_log = logging.getLogger(__name__)


class LastResort:
    """Embeds in this process, by the same identity as the servers' candidates.

    Args:
        make: Makes the backend; called at first need.
        selector: Its identity holds here too.
        examiner: Says what it is worth.
        clock: Seconds, monotonic.

    Attributes:
        source: What it was when it was loaded; None before.
    """

    def __init__(
        self,
        make: MakeBackend,
        selector: Selector,
        examiner: Examiner,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source: Source | None = None
        self._make = make
        self._selector = selector
        self._examiner = examiner
        self._clock = clock
        self._lock = threading.Lock()
        # A thread of its own, so that no call waits for it longer than it may.
        self._loader = ThreadPoolExecutor(1, "arcface-last-resort")
        self._loading: Future[EmbeddingBackend] | None = None
        self._tried_at = 0.0
        self._used_at = 0.0
        self._calls = 0
        self._closed = False

    def run(self, job: EmbedRequest) -> Served:
        """Embed what a job still misses.

        Raises:
            ArcFaceError: It cannot be loaded, is of another identity, or failed.
        """
        with self._in_use(job.deadline) as backend:
            return backend.run(job)

    def ensure_ready(self) -> None:
        """Load it, unless it is loaded.

        Raises:
            ArcFaceError: It cannot be loaded, or is of another identity.
        """
        with self._in_use(Deadline(LONGEST_LOOK_S)):
            pass

    def prepare(self) -> bool:
        """Begin to load it, unless that was done; whether it is loaded."""
        with self._lock:
            if not self._closed:
                self._begin()
        return self.loaded is not None

    @property
    def loaded(self) -> EmbeddingBackend | None:
        """The backend while it is loaded."""
        loading = self._loading
        if loading is None or not loading.done() or loading.exception() is not None:
            return None
        return loading.result()

    @property
    def problem(self) -> str | None:
        """Why it could not be loaded when that was tried last; None if nothing is known against it."""
        loading = self._loading
        error = loading.exception() if loading is not None and loading.done() else None
        return None if error is None else str(error)

    def let_go_if_idle(self) -> None:
        """Free it when a candidate serves and it was not needed for a while."""
        with self._lock:
            backend = self.loaded
            idle = not self._calls and self._clock() - self._used_at >= IDLE_S
            if backend is None or not idle or not self._selector.standing.ranking:
                return
            self._loading = None
        backend.close()

    def close(self) -> None:
        """Free it."""
        with self._lock:
            self._closed = True
        self._loader.shutdown(wait=True)
        backend = self.loaded
        if backend is not None:
            backend.close()

    @contextmanager
    def _in_use(self, deadline: Deadline) -> Iterator[EmbeddingBackend]:
        """The backend, which is not let go meanwhile; it is loaded first, where that was not done."""
        with self._lock:
            if self._closed:
                raise ClientClosedError("The embedder is closed; make a new one.")
            loading = self._begin()
            self._calls += 1
        try:
            yield self._wait_for(loading, deadline)
        finally:
            with self._lock:
                self._calls -= 1
                self._used_at = self._clock()

    def _wait_for(self, loading: Future[EmbeddingBackend], deadline: Deadline) -> EmbeddingBackend:
        try:
            error = loading.exception(deadline.remaining_s(LONGEST_LOOK_S))
        except concurrent.futures.TimeoutError as late:
            raise DeadlineExceededError("It was not loaded in time.") from late
        if error is not None:
            # Each time another one, since to raise one adds to its traceback.
            raise detached(error) if isinstance(error, ArcFaceError) else error
        return loading.result()

    def _begin(self) -> Future[EmbeddingBackend]:
        if self._loading is None or self._failed_long_ago():
            self._loading = self._loader.submit(self._load)
        self._used_at = self._clock()
        return self._loading

    def _failed_long_ago(self) -> bool:
        loading = self._loading
        failed = loading is not None and loading.done() and loading.exception() is not None
        return failed and self._clock() - self._tried_at >= TRY_AGAIN_S

    def _load(self) -> EmbeddingBackend:
        identity = self._selector.identity
        try:
            backend = self._make(None if identity is None else identity.reference.space)
            try:
                self._prove(backend)
            except BaseException:
                backend.close()
                raise
            return backend
        finally:
            self._tried_at = self._clock()

    def _prove(self, backend: EmbeddingBackend) -> None:
        embeddings, served = backend.encode(golden_crops(), return_source=True)
        source = self.source = served.sources[-1]
        finding = self._examiner.examine_here(embeddings, source.model, source.version)
        self._selector.accept(f"{source.model} in this process", finding)
        _log.warning("%s is loaded into this process, since no server serves", source.model)
