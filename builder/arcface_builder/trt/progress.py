"""How far a build is: TensorRT's progress monitor from 10 on, the time that passed before."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

from arcface_client.cli.commandline import FAILED, INTERRUPTED

T = TypeVar("T")

_TICK_S = 0.5


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass
class Phases:
    """TensorRT's phases, each a step of its parent's, as one fraction; one thread tells, another asks."""

    _phases: dict[str, _Phase] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase."""
        with self._lock:
            self._phases[name] = _Phase(parent, steps)

    def step(self, name: str, step: int) -> None:
        """Note that a step of a phase is done, counted from 0."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1

    def finish(self, name: str) -> None:
        """End a phase."""
        with self._lock:
            self._phases.pop(name, None)

    @property
    def current(self) -> str:
        """The innermost phase that began last."""
        with self._lock:
            return next(reversed(self._phases), "TensorRT")

    @property
    def fraction(self) -> float:
        """What part of the whole is done, 0 to 1."""
        with self._lock:
            return self._fraction(None)

    def _fraction(self, parent: str | None) -> float:
        name = next((key for key, phase in reversed(self._phases.items()) if phase.parent == parent), None)
        if name is None:
            return 0.0
        phase = self._phases[name]
        return min(1.0, (phase.done + self._fraction(name)) / max(1, phase.steps))


def monitor(trt: ModuleType, phases: Phases, cancelled: threading.Event) -> Any | None:
    """A progress monitor that also cancels the build; None where TensorRT has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            phases.step(name, step)
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            phases.finish(name)

    return Monitor()


def run_interruptibly(
    work: Callable[[], T], *, tick: Callable[[], None], cancelled: threading.Event, stoppable: bool
) -> T:
    """Run something long in another thread, so that this one can show progress and hear Ctrl-C.

    Args:
        work: What to run; it must not hold Python's lock all the time.
        tick: Is called at the start and, while it runs, some times a second.
        cancelled: Is set on Ctrl-C, or when ``tick`` fails; what can be stopped looks at it.
        stoppable: Wait until the work has stopped, or for another Ctrl-C; otherwise it is left to end with
            the process.

    Raises:
        BaseException: What the work raised.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    may_begin, ended = threading.Event(), threading.Event()

    def body() -> None:
        may_begin.wait()
        try:
            if not cancelled.is_set():
                results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            failures.append(error)
        finally:
            ended.set()

    try:
        # Ctrl-C in the midst of this would leave a thread of which nobody knows whether it runs.
        threading.Thread(target=body, name="tensorrt-build", daemon=True).start()
        may_begin.set()
        tick()
        # Not the thread's own join: Ctrl-C there makes CPython count a running thread as ended.
        while not ended.wait(_TICK_S):
            tick()
    except BaseException as error:
        cancelled.set()
        if not may_begin.is_set():
            may_begin.set()  # to its end
            raise
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
        atexit.register(_end_process_unless, ended, code)  # if it cannot be stopped, or at a second Ctrl-C
        # A wait without end could miss a Ctrl-C that comes just before it.
        while stoppable and not ended.wait(_TICK_S):
            pass
        raise
    if failures:
        raise failures.pop()  # left in the list it would hold this frame, and that the error
    return results[0]


def _end_process_unless(ended: threading.Event, code: int) -> None:
    """End the process at once if the work still runs: in a dying interpreter TensorRT's log aborts it."""
    if ended.is_set():
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by the caller
                with suppress(OSError, ValueError):  # a full disk, a reader that is gone; closed since
                    stream.flush()
    finally:
        os._exit(code)
