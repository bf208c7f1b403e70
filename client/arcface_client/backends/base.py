"""What a pipeline holds: an object that embeds, and can say which replica did it and why no other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Literal, overload

from typing_extensions import Self

from ..contract import Embeddings
from ..crops import Color, CropsLike, as_batch
from ..models.embedding_space import EmbeddingSpace
from ..observability.diagnostics import Diagnostics, Served
from ..observability.tracing import traced
from ..triton.embed_request import Deadline, EmbedRequest


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
        """What serves, how fast, how exactly, and why not another; what is unknown is None."""

    def space(self) -> EmbeddingSpace:
        """The embedding space of every answer; None is unknown, as all is before ``ensure_ready``."""
        return EmbeddingSpace()

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds; it cannot be used afterwards."""

    @abstractmethod
    def run(self, request: EmbedRequest) -> Served:
        """Embed what a request still misses, if anything.

        Raises:
            ArcFaceError: As ``encode``; what was embedded before stays in the request.
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
            timeout_s: Seconds that the whole call may take, all tries together; None for no limit.
            return_source: Also return which replicas served, and why others did not.

        Returns:
            float32 [N, D], rows of length one; D is the network's own, 512 for ArcFace. With
            ``return_source`` a ``Served`` beside it.

        Raises:
            InputError: The crops, or the backend (closed), cannot be used.
            TransientError: No candidate could serve in time.
            DeploymentError: No candidate can serve before something is fixed.
            NotFiniteError: The embeddings of some crops are NaN on every replica; the error holds the others.
        """
        request = EmbedRequest(as_batch(crops, color=color), Deadline(timeout_s))
        served = traced(partial(self.run, request), len(request.crops))
        return (request.embeddings, served) if return_source else request.embeddings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
