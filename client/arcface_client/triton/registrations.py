"""Which regions of system shared memory a server has open: registered, as Triton says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from .deadline import Deadline
from .owner import dead_owners
from .region import Region
from .status import CANCELLED, DEADLINE_EXCEEDED

LONGEST_CONTROL_S: Final = 1.0
"""How long the server may take to open or leave a region, in seconds."""

_EXTENSION: Final = "system_shared_memory"
_OLDEST_SERVER: Final = (2, 50)
"""Older ones crash when they have to leave a region that a request still uses."""

_IN_USE: Final = "StatusCode.INTERNAL"
_DOUBTFUL: Final = (DEADLINE_EXCEEDED, CANCELLED)


class Registrations:
    """Has a server open and leave regions; each question ends with the deadline of the call it is for.

    All methods raise what tritonclient does: ``InferenceServerException``, and ValueError when its channel
    is closed; or, when the time is up, ``DeadlineExceededError``.

    Args:
        triton: Gives tritonclient's client as it is now.
        url: The server.
    """

    def __init__(self, triton: Callable[[], Any], url: str) -> None:
        self._triton = triton
        self._url = url

    def check(self, deadline: Deadline) -> None:
        """Raise ValueError where the server cannot share memory, or not safely."""
        check_metadata(self._triton().get_server_metadata(client_timeout=_limit_s(deadline)))

    def add(self, region: Region, deadline: Deadline) -> None:
        """Have the server open a region."""
        self._triton().register_system_shared_memory(
            region.name, f"/{region.name}", region.size, client_timeout=_limit_s(deadline)
        )

    def remove(self, name: str, deadline: Deadline) -> bool:
        """Have the server leave a region; False when it cannot yet, since a request still uses it."""
        try:
            self._triton().unregister_system_shared_memory(name, client_timeout=_limit_s(deadline))
        except InferenceServerException as error:
            if error.status() != _IN_USE:
                raise
            return False
        return True

    def clear_up(self, deadline: Deadline) -> None:
        """Have the server leave the regions of processes that were killed."""
        for dead in dead_owners(self._url):
            timeout_s = _limit_s(deadline)
            for name in self._triton().get_system_shared_memory_status(client_timeout=timeout_s).regions:
                if name.startswith(dead) and not self.remove(name, deadline):
                    raise ValueError(f"a request of a process that was killed still uses {name}")


def is_refusal(error: Exception) -> bool:
    """Whether the server has certainly not done what it was asked, for it said so or was not there."""
    return isinstance(error, InferenceServerException) and error.status() not in _DOUBTFUL


def check_metadata(metadata: Any) -> None:
    """Raise ValueError for the metadata of a server that cannot share memory, or not safely."""
    if _EXTENSION not in metadata.extensions:
        raise ValueError(f"Triton {metadata.version} has no extension {_EXTENSION}")
    version = re.match(r"(\d+)\.(\d+)", metadata.version)
    if version is None or tuple(map(int, version.groups())) < _OLDEST_SERVER:
        oldest = ".".join(map(str, _OLDEST_SERVER))
        raise ValueError(f"Triton {metadata.version} does not share memory safely; {oldest} and newer do")


def _limit_s(deadline: Deadline) -> float:
    return deadline.remaining_s(LONGEST_CONTROL_S)
