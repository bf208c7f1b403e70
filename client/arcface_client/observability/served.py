"""How a call was served: by which candidates, and why not by others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HERE: Final = "this process"
"""Where a source in this process is."""


@dataclass(frozen=True)
class Source:
    """A candidate that embedded crops of a call.

    Attributes:
        backend: "triton", "tensorrt", "onnxruntime" or "insightface".
        model: The model's name.
        version: Its version; None when it has none.
        where: ``host:port`` of the server, or "this process".
        crops: How many crops of the call it embedded.
    """

    backend: str
    model: str
    version: int | None
    where: str
    crops: int


@dataclass(frozen=True)
class Refusal:
    """A candidate that did not serve, and why."""

    candidate: str
    reason: str


@dataclass(frozen=True)
class Served:
    """How a call was served.

    Attributes:
        sources: The candidates that embedded its crops, in the order in which they were used; one, unless a
            candidate failed in the middle.
        refusals: Every candidate that would have been preferred to the last of them, and why it was not
            used.
    """

    sources: tuple[Source, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def fell_back(self) -> bool:
        """Whether not everything came from the first choice."""
        return bool(self.refusals) or len(self.sources) > 1
