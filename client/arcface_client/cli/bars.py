"""Progress bars on standard error, and what there is in their place without a terminal or tqdm."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

_log = logging.getLogger(__name__)

T = TypeVar("T")

Tell = Callable[[str, float | None], None]
"""Is told the stage of something long, and what part of it is done, 0 to 1; None where nobody knows."""

_REFRESH_S = 1.0


def progress(items: Iterable[T], *, total: int | None = None, unit: str) -> Iterator[T]:
    """Yield the items under a progress bar on standard error; without a terminal or tqdm, just yield."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from items
        return
    yield from tqdm(items, total=total, unit=unit, disable=None, leave=False)


@contextmanager
def transfer(name: str, size_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show bytes that move under a progress bar on standard error; without a terminal or tqdm, show nothing.

    Yields:
        What is to be told how many bytes have moved since it was told last.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    bar = tqdm(desc=name, total=size_bytes, unit="B", unit_scale=True, disable=None, leave=False)
    with bar:
        yield bar.update


@contextmanager
def stages(name: str) -> Iterator[Tell]:
    """Show the stage of something long, how much is done, and the time, under a bar on standard error.

    Without a terminal or tqdm, log each new stage, and when it began.
    """
    try:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm
    except ImportError:
        yield _logging_stages(name)
        return
    layout = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"
    bar = tqdm(desc=name, total=1.0, bar_format=layout, disable=None, leave=False)
    if bar.disable:
        yield _logging_stages(name)
        return
    lock = tqdm.get_lock()  # type: ignore[no-untyped-call]
    with bar, logging_redirect_tqdm(), _refreshing(bar, lock):  # log lines go above the bar

        def tell(stage: str, done: float | None) -> None:
            with lock:  # Ctrl-C in tqdm's own locking would leave it taken
                bar.n = done or 0.0
                bar.set_postfix_str(stage, refresh=False)
                bar.refresh(nolock=True)

        yield tell


@contextmanager
def _refreshing(bar: tqdm[Any], lock: AbstractContextManager[object]) -> Iterator[None]:
    """Draw a bar anew each second, so that its time goes on during a stage that is told once."""
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(_REFRESH_S):
            # A terminal that cannot be written to is an error where a stage is told.
            with suppress(OSError), lock:
                bar.refresh(nolock=True)

    thread = threading.Thread(target=refresh, name="progress-refresh", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # Not without end: Ctrl-C in tqdm, as it draws a bar of bytes, leaves its lock taken. A closed bar is
        # not drawn, whoever gets the lock.
        thread.join(_REFRESH_S)


def _logging_stages(name: str) -> Tell:
    started, told = time.monotonic(), set[str]()

    def tell(stage: str, done: float | None) -> None:
        nonlocal told
        if stage not in told:
            # The phases of something whose part is known come again and again.
            told = {stage} if done is None else told | {stage}
            _log.info("%s: %s (after %.0f s)", name, stage, time.monotonic() - started)

    return tell
