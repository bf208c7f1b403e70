"""From a source to rows: reading, embedding and counting at the same time, in the source's order."""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import chain, compress, islice
from typing import Final

from ..backends.base import EmbeddingBackend
from ..errors import ArcFaceError, SourceUnavailableError
from .decode import Decoded
from .ids import IdSet
from .reader import CHUNK, MOST_WORKERS, Reader
from .rows import Rows, embed
from .source import Item, Source

CALLS: Final = 2
"""Calls of the embedder at a time: while one's last request is answered, the next one's are sent."""


@dataclass(frozen=True)
class Counts:
    """How far a job is.

    Attributes:
        done: Crops that this run is through with.
        failed: Those of them that have no embedding.
        duplicates: Ids that were met again, and left out.
        kept: Crops that an earlier run embedded.
        total: How many crops the source has; None while that is not known.
    """

    done: int = 0
    failed: int = 0
    duplicates: int = 0
    kept: int = 0
    total: int | None = None


_NAMED: Final = 5
"""Duplicate ids that are named in the log."""

_log = logging.getLogger(__name__)

Observe = Callable[[Counts, Rows | None], None]
"""Called with the counts after each chunk and with its rows; with None when they alone have changed."""


class RowStream(ABC):
    """Embeds what a source has, once.

    Attributes:
        source: Where the crops are.
        resize: Scale images of another size instead of refusing them.
        counts: How far it is.
    """

    def __init__(self, source: Source, resize: bool, observe: Observe) -> None:
        self.source, self.resize, self.counts = source, resize, Counts()
        self._observe, self._seen = observe, IdSet()
        self._total: int | None = None

    @abstractmethod
    def rows(self, known: IdSet) -> Generator[Rows, None, None]:
        """Yield rows, one for each id that is not known; close the generator to end it early.

        Args:
            known: Ids that are embedded already, and are left out.

        Raises:
            SourceUnavailableError: The source cannot be read now.
            ArcFaceError: As ``EmbeddingBackend.encode``.
        """

    def _begin_count(self) -> None:
        # Nothing waits for it: listing ten million files takes a minute.
        threading.Thread(target=self._count, daemon=True).start()

    def _note(self, rows: Rows) -> None:
        failed = sum(error is not None for error in rows.errors)
        if failed == len(rows.ids) and not self.source.is_there():
            raise SourceUnavailableError(
                f"{self.source.names[0]} is gone. What was embedded before is kept; run the same "
                "command again when it is back."
            )
        counts = self.counts
        done, failed = counts.done + len(rows.ids), counts.failed + failed
        self.counts = replace(counts, done=done, failed=failed, total=self._total)
        self._observe(self.counts, rows)

    def _count(self) -> None:
        with suppress(ArcFaceError):  # the reader meets it, too, and raises it
            self._total = self.source.count()


class Stream(RowStream):
    """Embeds what a source has, in its order; a few chunks are held in memory.

    Args:
        source: Where the crops are.
        backend: Embeds them; ``ensure_ready`` was called.
        resize: Scale images of another size instead of refusing them.
        workers: Processes that read; None takes one for each processor, 8 at most, and
            none for a single chunk.
        observe: Is told how far it is, from this thread.
    """

    def __init__(
        self,
        source: Source,
        backend: EmbeddingBackend,
        *,
        resize: bool = False,
        workers: int | None = None,
        observe: Observe,
    ) -> None:
        super().__init__(source, resize, observe)
        self._backend, self._workers = backend, workers

    def rows(self, known: IdSet) -> Generator[Rows, None, None]:
        """Yield rows in the source's order; see ``RowStream``."""
        self._begin_count()
        items = self._fresh(self.source.items(), known)
        first = list(islice(items, CHUNK))
        workers = self._workers
        if workers is None:
            workers = 0 if len(first) < CHUNK else min(os.cpu_count() or 1, MOST_WORKERS)
        with ExitStack() as stack:
            reader = stack.enter_context(closing(Reader(workers, in_use=CALLS, resize=self.resize)))
            threads = ThreadPoolExecutor(CALLS)
            # What is under way ends when the embedder is closed, or by itself.
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            under_way: deque[tuple[int, Future[Rows]]] = deque()
            chunks = reader.read(chain(first, items))
            while True:
                for decoded, slot in islice(chunks, CALLS - len(under_way)):
                    under_way.append((slot, threads.submit(self._embed, decoded, reader)))
                if not under_way:
                    return
                slot, embedding = under_way.popleft()
                rows = embedding.result()
                reader.free(slot)
                self._note(rows)
                yield rows

    def _embed(self, decoded: Decoded, reader: Reader) -> Rows:
        # The reader is held because its memory is unmapped with it, and a call may outlive the job.
        return embed(self._backend, decoded)

    def _fresh(self, items: Iterator[Item], known: IdSet) -> Iterator[Item]:
        """Leave out what is known, and ids that were met before."""
        while some := list(islice(items, CHUNK)):
            ids = [item.id for item in some]
            is_new, is_known = self._seen.add(ids), known.contain(ids)
            again, kept = int((~is_new).sum()), int((is_new & is_known).sum())
            if again or kept:
                counts = self.counts
                for id in islice(compress(ids, ~is_new), max(0, _NAMED - counts.duplicates)):
                    _log.warning("The id %s occurs again; only its first crop is embedded", id)
                self.counts = replace(counts, duplicates=counts.duplicates + again, kept=counts.kept + kept)
                self._observe(self.counts, None)
            yield from (item for item, is_wanted in zip(some, is_new & ~is_known, strict=True) if is_wanted)
