"""Processes that are forked from the one that made something, and have its memory, but not its threads."""

from __future__ import annotations

import os

from .errors import InputError


class Maker:
    """The process that made something, which alone may use it.

    Others would write to the same sockets and shared memory, and wait for locks whose holders they have not.

    Args:
        what: What it made, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_another(self) -> bool:
        """Whether this process was forked from it."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Check that this process is it; to be done before any lock is taken.

        Raises:
            InputError: This process was forked from it.
        """
        if self.is_another:
            raise InputError(
                f"{self._what} was made before this process was forked, and is its parent's; "
                "make one in each process, or start processes by 'spawn'."
            )
