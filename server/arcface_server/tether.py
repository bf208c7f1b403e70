"""Become another program that ends when its parent does, and takes its own children along.

Run as a script: ``python tether.py PARENT_PID PROGRAM [ARGUMENT...]``, in a process group of its own. A
parent killed with SIGKILL cannot end its children, so the kernel is asked to (prctl(2),
PR_SET_PDEATHSIG). The wish survives exec, and asking for it here, not in ``subprocess``'s
``preexec_fn``, keeps Python from running between fork and exec, which is not safe beside gRPC's threads.

The program's own children, Triton's stubs, have no such wish. A watcher stays behind that kills the
group once the program is gone, however it went, or when it hangs after its parent's end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_S = 2.0
_GRACE_S = 10.0


def main(parent_pid: int, command: list[str]) -> None:
    """Leave the watcher behind, ask for SIGTERM at the parent's end, then become the command."""
    program_pid = os.getpid()
    if os.fork() == 0:
        _watch(program_pid, parent_pid)
    _tell_at_death_of(parent_pid, signal.SIGTERM)
    os.execv(command[0], command)


def _watch(program_pid: int, parent_pid: int) -> None:
    """Wait for the program's end, and kill what is left of its process group, this process too."""
    # A signal that nobody else sends: SIGTERM may come to the whole group.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT})
    _tell_at_death_of(program_pid, signal.SIGUSR1)
    while signal.sigtimedwait({signal.SIGUSR1}, _POLL_S) is None:
        if not _is_alive(parent_pid):
            # The program got SIGTERM; one that is stopped, or hangs, cannot follow it.
            signal.sigtimedwait({signal.SIGUSR1}, _GRACE_S)
            break
    os.killpg(0, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # the name is cut, perhaps in the middle of a letter
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Where there is no init, nobody may ever wait for a process that has ended: a zombie, which
    # os.kill(pid, 0) finds alive. The letter follows the name, which may hold brackets itself.
    return stat.rpartition(b")")[2].split()[0] != b"Z"


def _tell_at_death_of(parent_pid: int, number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:  # It ended before the wish was made.
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
