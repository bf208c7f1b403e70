"""How far a build is, and how Ctrl-C ends it. TensorRT has a progress monitor from 10 on."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import ModuleType
from typing import Final, TypeVar

from .compat import has_progress_monitor

T = TypeVar("T")

_TICK_S: Final = 0.5
_INTERRUPTED: Final = 130


class Phases:
    """TensorRT's phases, each a step of its parent's, as one fraction; one thread writes, another reads.

    Its methods are those of TensorRT's ``IProgressMonitor``.

    Args:
        cancelled: Once it is set, the next step ends the build.
    """

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase."""
        with self._lock:
            self._phases[name] = (parent, steps, 0)

    def step_complete(self, name: str, step: int) -> bool:
        """Note that a step of a phase, counted from 0, is done; False ends the build."""
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, step + 1)
        return not self._cancelled.is_set()

    def phase_finish(self, name: str) -> None:
        """End a phase."""
        with self._lock:
            self._phases.pop(name, None)

    @property
    def now(self) -> tuple[str, float]:
        """The innermost phase that began last, and what part of the whole is done, 0 to 1."""
        with self._lock:
            return next(reversed(self._phases), "TensorRT"), self._fraction(None)

    def _fraction(self, parent: str | None) -> float:
        name = next((key for key, phase in reversed(self._phases.items()) if phase[0] == parent), None)
        if name is None:
            return 0.0
        _, steps, done = self._phases[name]
        return min(1.0, (done + self._fraction(name)) / max(1, steps))


def monitor(trt: ModuleType, cancelled: threading.Event) -> Phases | None:
    """A progress monitor for TensorRT, which also cancels the build; None where TensorRT has none."""
    if not has_progress_monitor(trt.__version__):
        return None

    class Monitor(Phases, trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            Phases.__init__(self, cancelled)

    return Monitor()


def run_interruptibly(work: Callable[[], T], *, tick: Callable[[], None], cancelled: threading.Event) -> T:
    """Run something long in another thread, so that this one can show progress and receive Ctrl-C.

    Args:
        work: What to run; it must release Python's lock.
        tick: Is called at the start and, while the work runs, twice a second.
        cancelled: Is set on Ctrl-C, or when ``tick`` fails. Work that looks at it stops; other work ends with
            the process.

    Raises:
        BaseException: What the work raised.
    """
    result: Future[T] = Future()

    def body() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            result.set_exception(error)

    thread = threading.Thread(target=body, name="tensorrt-build", daemon=True)
    try:
        thread.start()
        tick()
        while not wait([result], timeout=_TICK_S).done:
            tick()
    except BaseException:
        cancelled.set()
        atexit.register(_end_process_unless, result)
        raise
    return result.result()


def _end_process_unless(result: Future[T]) -> None:
    """End the process at once if the work still runs: TensorRT aborts in an interpreter that shuts down."""
    if not result.done():
        os._exit(_INTERRUPTED)
