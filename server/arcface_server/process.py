"""A child process that cannot outlive this one, and that leaves no process of its own behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_TETHER = Path(__file__).with_name("tether.py")


class TetheredProcess:
    """A program in a process group of its own, which ends when this process does.

    Args:
        command: The program's path and its arguments.
        environment: Its environment.
        log: File for its standard output and standard error; None is this process's standard error.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None) -> None:
        self._parent_pid = os.getpid()
        self._command = [sys.executable, "-I", "-S", str(_TETHER), str(self._parent_pid), *command]
        self._environment = environment
        self._log = log
        self._started: threading.Event = threading.Event()
        self._error: OSError | None = None
        # Linux ends the child when the *thread* that started it ends. This one lives as long as the
        # child, so that a server can be started in a short-lived thread of a notebook or test.
        threading.Thread(target=self._keep, name="tritonserver", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    @property
    def pid(self) -> int:
        """The program's process id, which is its process group's too."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the program runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the program's end and return its exit code."""
        return self._process.wait()

    def stop(self, timeout_s: float) -> None:
        """End the program, gently for as long as the timeout allows, and all that it started.

        A process that was forked from the one that started it leaves it alone.
        """
        if os.getpid() != self._parent_pid:
            return
        try:
            if self.poll() is None:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout_s)
        finally:  # also when a second Ctrl-C breaks into the wait
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _keep(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log or sys.__stderr__,
                stderr=self._log or sys.__stderr__,
                start_new_session=True,  # Ctrl-C in the terminal is for this process, which then ends it.
            )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        self._process.wait()
