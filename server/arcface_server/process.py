"""A child process that ends with this one and leaves no process of its own behind.

Run as a script, this file is the supervisor: ``python process.py PARENT_PID FOLDER PROGRAM [ARGUMENT...]``
becomes the program, in a process group of its own. A parent that is killed with SIGKILL cannot end its
children, so the kernel is asked to (prctl(2), PR_SET_PDEATHSIG). The request survives exec. Made here, and
not in ``subprocess``'s ``preexec_fn``, it runs no Python between fork and exec, which is unsafe beside
gRPC's threads.

The program's own children, Triton's stubs, do not inherit the request. So a watcher stays in the group. It
kills the group once the program has ended, or hangs after its parent's end.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_POLL_S = 2.0
_GRACE_S = 10.0


class SupervisedProcess:
    """A program in a process group of its own, which ends when this process does.

    Args:
        command: The program's path and its arguments.
        environment: Its environment.
        folder: Folder that the supervisor removes if this process ends first.
        log: File for its standard output and standard error; None means this process's standard error.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: IO[bytes] | None
    ) -> None:
        self._parent_pid = os.getpid()
        supervisor = [sys.executable, "-I", "-S", __file__, str(self._parent_pid), str(folder)]
        self._command = [*supervisor, *command]
        self._environment = environment
        self._log = log
        self._started = threading.Event()
        self._error: OSError | None = None
        # Linux ends the child with the *thread* that started it. This thread lives as long as the child, so
        # that a short-lived thread of a notebook or test can start a server.
        threading.Thread(target=self._keep, name="tritonserver", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    @property
    def pid(self) -> int:
        """The program's process id, which is also the id of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the program runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the program's end and return its exit code."""
        return self._process.wait()

    def stop(self, timeout_s: float) -> None:
        """End the program and all that it started, with SIGKILL after the timeout.

        In a process that was forked from the one that started the program, this does nothing.
        """
        if os.getpid() != self._parent_pid:
            return
        try:
            if self.poll() is None:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout_s)
        finally:  # also when a second Ctrl-C interrupts the wait
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
                start_new_session=True,  # Ctrl-C in the terminal is for this process, which ends the program
            )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        self._process.wait()


def supervise(parent_pid: int, folder: str, command: list[str]) -> None:
    """Leave the watcher behind, request SIGTERM at the parent's end, then become the command."""
    program_pid = os.getpid()
    if os.fork() == 0:
        _watch(program_pid, parent_pid, folder)
    _request_signal_at_end_of(parent_pid, signal.SIGTERM)
    os.execv(command[0], command)


def _watch(program_pid: int, parent_pid: int, folder: str) -> None:
    """Wait for the program's end, then kill the rest of its process group, which includes this process."""
    # SIGUSR1 comes from the kernel alone; SIGTERM may be sent to the whole group.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT})
    _request_signal_at_end_of(program_pid, signal.SIGUSR1)
    while signal.sigtimedwait({signal.SIGUSR1}, _POLL_S) is None:
        if not _is_alive(parent_pid):
            # The program has got SIGTERM, which it does not follow if it is stopped or hangs.
            signal.sigtimedwait({signal.SIGUSR1}, _GRACE_S)
            break
    if not _is_alive(parent_pid):
        shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # In a container without an init process, a process that has ended may stay a zombie for ever. The state
    # letter follows the program's name, which may contain brackets itself.
    return stat.rpartition(b")")[2].split()[0] != b"Z"


def _request_signal_at_end_of(parent_pid: int, number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:  # it ended before the request
        sys.exit(1)


if __name__ == "__main__":
    supervise(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
