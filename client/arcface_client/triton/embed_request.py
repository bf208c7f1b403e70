"""One call's work, which several candidates may share: what one has done is not asked of the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..contract import EMBEDDING_DIM, Crops, Embeddings
from .deadline import Deadline


class EmbedRequest:
    """Crops to embed, the embeddings that are there already, and the time that is left.

    Not thread-safe.

    Args:
        crops: uint8 [N, 112, 112, 3], BGR, C-contiguous; N may be 0.
        deadline: When the whole call must have ended.
    """

    def __init__(self, crops: Crops, deadline: Deadline) -> None:
        self.crops = crops
        self.deadline = deadline
        self.embeddings: Embeddings = np.empty((len(crops), EMBEDDING_DIM), np.float32)
        """float32 [N, 512]; rows that are missing hold anything."""
        self._there = np.zeros(len(crops), bool)

    @property
    def missing(self) -> int:
        """How many crops have no embedding yet."""
        return len(self._there) - int(np.count_nonzero(self._there))

    def parts(self, size: int) -> Sequence[slice]:
        """The rows that are missing, in order, as runs of at most ``size`` neighbours."""
        edges = np.flatnonzero(np.diff(self._there.astype(np.int8), prepend=1, append=1))
        return [
            slice(start, min(start + size, int(stop)))
            for first, stop in zip(edges[::2], edges[1::2], strict=True)
            for start in range(int(first), int(stop), size)
        ]

    def mark(self) -> NDArray[np.bool_]:
        """What is there now; for ``forget_since``."""
        return self._there.copy()

    def forget_since(self, mark: NDArray[np.bool_]) -> None:
        """Take all that was filled in since as missing."""
        self._there = mark

    def fill(self, part: slice, embeddings: Embeddings) -> None:
        """Take the embeddings of a part, which were checked: float32 [n, 512]."""
        self.embeddings[part] = embeddings
        self._there[part] = True
