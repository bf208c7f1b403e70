"""A model that serves, for as long as a call uses it."""

from __future__ import annotations

import logging

from ..errors import DeploymentError
from ..observability.served import HERE, Source
from .local_model import LocalCandidate, LocalModel

_log = logging.getLogger(__name__)


class Serving:
    """The model that serves, and how many calls are using it. One thread at a time may change it.

    Args:
        candidate: Whose model it is.
        model: The model.
        drift: Largest drift of its golden crops; None when nobody knows.
    """

    def __init__(self, candidate: LocalCandidate, model: LocalModel, drift: float | None) -> None:
        self.candidate = candidate
        self.model = model
        self.drift = drift
        self._users = 0
        self._dropped = False

    def source(self, crops: int) -> Source:
        """It as the source of some crops."""
        return Source(self.model.backend, self.model.model, self.model.version, HERE, crops)

    def enter(self) -> None:
        """A call begins to use it."""
        self._users += 1

    def leave(self) -> bool:
        """A call is done with it; returns whether it has to be freed now."""
        self._users -= 1
        return self._dropped and not self._users

    def drop(self) -> bool:
        """No further call will use it; returns whether it has to be freed now, as no call uses it."""
        self._dropped = True
        return not self._users

    def free(self) -> None:
        """Free the model; with no lock held, since that may last, and is logged where it fails."""
        try:
            self.model.runtime.close()
        except DeploymentError as error:  # as of a GPU that has failed; the next candidate may do without
            _log.warning("%s was not freed: %s", self.candidate.name, error)
