"""How many threads are worth starting."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Count the physical cores that this process may run on; 0 where the system does not tell.

    Two threads of one core share its arithmetic, so a second one gains nothing.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list"
        if not siblings.is_file():
            return 0
        cores.add(siblings.read_text())
    return len(cores)
