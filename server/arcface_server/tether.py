"""Become another program that ends when its parent does.

Run as a script: ``python tether.py PARENT_PID PROGRAM [ARGUMENT...]``. A parent killed with SIGKILL
cannot end its children, so the kernel is asked to (prctl(2), PR_SET_PDEATHSIG). The wish survives
exec, and asking for it here, not in ``subprocess``'s ``preexec_fn``, keeps Python from running
between fork and exec, which is not safe beside gRPC's threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Ask for SIGTERM at the parent's end, then become the command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # It ended before the wish was made.
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
