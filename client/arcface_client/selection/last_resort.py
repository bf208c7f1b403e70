"""The last resort: a model in this process, loaded when no server serves, and let go when one does again."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from ..backend import EmbeddingBackend, Served, Source
from ..deadline import Deadline
from ..errors import ArcFaceError, ClientClosedError, DeadlineExceededError, detached
from ..golden import golden_crops
from ..job import Job
from .examiner import Examiner
from .selector import LONGEST_LOOK_S, Selector

IDLE_S: Final = 300.0
"""How long it is kept after its last call, in seconds."""

TRY_AGAIN_S: Final = 30.0
"""How long a failure to load it is taken for granted, in seconds."""

MakeBackend = Callable[[int | None], EmbeddingBackend]
"""Makes the backend for a release; None is the newest."""

_log = logging.getLogger(__name__)


class LastResort:
    """Embeds in this process, by the same identity as the servers' candidates.

    Args:
        make: Makes the backend; called at first need.
        selector: Its identity holds here too.
        examiner: Says what it is worth.

    Attributes:
        source: What it was when it was loaded; None before.
    """

    def __init__(self, make: MakeBackend, selector: Selector, examiner: Examiner) -> None:
        self.source: Source | None = None
        self._make = make
        self._selector = selector
        self._examiner = examiner
        self._lock = threading.Lock()
        # A thread of its own, so that no call waits for it longer than it may.
        self._loader = ThreadPoolExecutor(1, "arcface-last-resort")
        self._loading: Future[EmbeddingBackend] | None = None
        self._loaded_at = 0.0
        self._used_at = 0.0
        self._closed = False

    def run(self, job: Job) -> Served:
        """Embed what a job still misses.

        Raises:
            ArcFaceError: It cannot be loaded, is of another identity, or failed.
        """
        return self._backend(job.deadline).run(job)

    def ensure_ready(self) -> None:
        """Load it, unless it is loaded.

        Raises:
            ArcFaceError: It cannot be loaded, or is of another identity.
        """
        self._backend(Deadline(LONGEST_LOOK_S))

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

    def let_go_if_idle(self) -> None:
        """Free it when a candidate serves and it was not needed for a while."""
        with self._lock:
            backend = self.loaded
            idle = time.monotonic() - self._used_at >= IDLE_S
            if backend is not None and idle and self._selector.standing.ranking:
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

    def _backend(self, deadline: Deadline) -> EmbeddingBackend:
        with self._lock:
            if self._closed:
                raise ClientClosedError("The embedder is closed; make a new one.")
            loading = self._begin()
        try:
            error = loading.exception(deadline.remaining_s(LONGEST_LOOK_S))
        except concurrent.futures.TimeoutError as late:
            raise DeadlineExceededError("It was not loaded in time.") from late
        if error is not None:
            raise detached(error)  # Each time another one, since to raise one adds to its traceback.
        return loading.result()

    def _begin(self) -> Future[EmbeddingBackend]:
        if self._loading is None or self._failed_long_ago():
            self._loading = self._loader.submit(self._load)
        self._used_at = time.monotonic()
        return self._loading

    def _failed_long_ago(self) -> bool:
        loading = self._loading
        failed = loading is not None and loading.done() and loading.exception() is not None
        return failed and time.monotonic() - self._loaded_at >= TRY_AGAIN_S

    def _load(self) -> EmbeddingBackend:
        identity = self._selector.identity
        self._loaded_at = time.monotonic()
        backend = self._make(None if identity is None else identity.release)
        try:
            self._prove(backend)
        except ArcFaceError:
            backend.close()
            raise
        return backend

    def _prove(self, backend: EmbeddingBackend) -> None:
        embeddings, served = backend.encode(golden_crops(), return_source=True)
        source = self.source = served.sources[-1]
        finding = self._examiner.examine_here(embeddings, source.model, source.version)
        self._selector.accept(f"{source.model} in this process", source.version, finding)
        _log.warning("%s is loaded into this process, since no server serves", source.model)
