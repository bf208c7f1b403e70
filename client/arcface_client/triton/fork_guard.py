"""Objects that a forked process must not use."""

from __future__ import annotations

import os

from ..errors import InputError


class ForkGuard:
    """Remembers the process in which an object was made.

    A forked process has the same sockets and locks, but not the threads that serve them.

    Args:
        what: The object, as a message names it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that made the object."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Check that this process made the object; do this before any lock is taken.

        Raises:
            InputError: The process was forked since.
        """
        if self.is_forked:
            raise InputError(
                f"{self._what} was made before this process was forked and belongs to the parent process; "
                "make one in each process, or start processes by 'spawn'."
            )
