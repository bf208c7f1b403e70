"""What a server says of itself and of its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model, as the server's repository index lists it.

    Attributes:
        name: The model.
        version: Its version; None when not even one could be looked at (a broken configuration).
        state: READY, UNAVAILABLE, LOADING or UNLOADING; empty when never loaded.
        reason: Why it is not ready, in the server's words.
    """

    name: str
    version: int | None
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.state == "READY"


@dataclass(frozen=True)
class ServerStatus:
    """A server, and what it serves.

    Attributes:
        url: ``host:port`` of its gRPC service.
        version: Triton's version; None when it does not answer.
        ready: Whether it says that it is ready.
        models: Its models.
        problem: What kept it from answering; None when it did.
    """

    url: str
    version: str | None
    ready: bool
    models: Sequence[ModelStatus] = ()
    problem: str | None = None


def models_from_index(response: Any) -> tuple[ModelStatus, ...]:
    """Read tritonclient's answer to ``get_model_repository_index``."""
    models = [
        ModelStatus(
            entry.name,
            int(entry.version) if entry.version else None,
            entry.state,
            # After the first line a backend in Python has its traceback, which is in the server's log.
            entry.reason.partition("\n")[0].strip(),
        )
        for entry in response.models
    ]
    return tuple(sorted(models, key=lambda model: (model.name, model.version or 0)))
