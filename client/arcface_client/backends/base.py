"""What a pipeline holds: an object that embeds, and always says which candidate did it and why no other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, TypeVar, overload

from ..contract import Embeddings
from ..crops import Color, CropsLike, as_batch
from ..observability.diagnostics import Diagnostics
from ..triton.deadline import Deadline
from .embed_request import Job

HERE: Final = "this process"
"""Where a source in this process is."""

Backend = TypeVar("Backend", bound="EmbeddingBackend")


@dataclass(frozen=True)
class Source:
    """A candidate that embedded crops of a call.

    Attributes:
        backend: "triton", "tensorrt", "onnxruntime" or "pytorch".
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


class EmbeddingBackend(ABC):
    """Face crops in, embeddings out. Safe to share between threads."""

    @abstractmethod
    def ensure_ready(self) -> None:
        """Check that the backend can serve, and load what it needs.

        Raises:
            ArcFaceError: It cannot; the message says why and what to do.
        """

    @abstractmethod
    def diagnostics(self) -> Diagnostics:
        """What serves, how fast, how exactly, and why not another; unknown is None, never invented."""

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds; it cannot be used afterwards."""

    @abstractmethod
    def run(self, job: Job) -> Served:
        """Embed what a job still misses, if anything.

        Raises:
            ArcFaceError: As ``encode``; what was embedded before stays in the job.
        """

    @overload
    def encode(
        self,
        crops: CropsLike,
        *,
        color: Color = "bgr",
        timeout_s: float | None = None,
        return_source: Literal[False] = False,
    ) -> Embeddings: ...

    @overload
    def encode(
        self,
        crops: CropsLike,
        *,
        color: Color = "bgr",
        timeout_s: float | None = None,
        return_source: Literal[True],
    ) -> tuple[Embeddings, Served]: ...

    def encode(
        self,
        crops: CropsLike,
        *,
        color: Color = "bgr",
        timeout_s: float | None = None,
        return_source: bool = False,
    ) -> Embeddings | tuple[Embeddings, Served]:
        """Embed crops; the result has one row for each, in their order.

        Args:
            crops: uint8 [N, 112, 112, 3], or a list of uint8 [112, 112, 3]; any N, 0 too.
            color: Channel order of the crops.
            timeout_s: Seconds that the whole call may take, all tries together; None is no limit.
            return_source: Also say who served.

        Returns:
            float32 [N, 512], rows of length one; with ``return_source`` a ``Served`` beside it.

        Raises:
            InputError: The crops, or the backend (closed), cannot be used.
            TransientError: Nobody could serve in time.
            DeploymentError: Nobody can serve before something is mended.
        """
        embeddings, served = self.embed(crops, color, Deadline(timeout_s))
        return (embeddings, served) if return_source else embeddings

    def embed(self, crops: CropsLike, color: Color, deadline: Deadline) -> tuple[Embeddings, Served]:
        """Embed crops within a deadline of the caller's own, who may end it early; else as ``encode``."""
        job = Job(as_batch(crops, color=color), deadline)
        served = self.run(job)
        return job.embeddings, served

    def __enter__(self: Backend) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
