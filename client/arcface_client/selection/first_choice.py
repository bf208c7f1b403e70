"""Logs which candidate serves, whenever that changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..errors import ArcFaceError

_log = logging.getLogger(__name__)


class FirstChoice:
    """The candidate that gets every call it can take. One thread at a time may change it."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._has_been = False

    def becomes(self, name: str | None, against: Mapping[str, ArcFaceError | None]) -> None:
        """Note which one it is now.

        Args:
            name: The candidate; None when nobody serves.
            against: What speaks against each candidate.
        """
        if name == self._name:
            return
        if self._name is None:
            _log.log(logging.WARNING if self._has_been else logging.INFO, "%s serves", name)
        else:
            reason = against.get(self._name) or "the other is preferred"
            _log.warning("%s serves now, not %s: %s", name or "No candidate", self._name, reason)
        self._name = name
        self._has_been = True
