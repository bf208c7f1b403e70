"""Processes that are forked from the one that made something."""

from __future__ import annotations

import os

from ..errors import InputError


class MadeHere:
    """Remembers in which process it was made.

    A process that is forked from that one must not use what belongs to it: it has the same sockets and
    locks, but not the threads that hold them.

    Args:
        what: What belongs to the process, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked since."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Check that this is still the same process; to be done before any lock is taken.

        Raises:
            InputError: It was forked since.
        """
        if self.is_forked:
            raise InputError(
                f"{self._what} was made before this process was forked, and is its parent's; "
                "make one in each process, or start processes by 'spawn'."
            )
