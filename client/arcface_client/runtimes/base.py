"""What a runtime is: a serving graph loaded into this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..contract import Crops, Embeddings

Embed = Callable[[Crops], Embeddings]
"""Unit embeddings, float32 [N, 512], of BGR crops."""


def in_batches(embed: Embed, crops: Crops, size: int) -> Embeddings:
    """Embed crops, at least one, in batches of a size; the last one may be smaller."""
    return np.concatenate([embed(crops[start : start + size]) for start in range(0, len(crops), size)])


class Runtime(Protocol):
    """A loaded model with the contract's tensors."""

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch.

        Args:
            crops: C-contiguous uint8 [N, 112, 112, 3], BGR, N at least 1.

        Returns:
            float32 [N, 512], rows of length one.
        """
        ...

    def close(self) -> None:
        """Free what the model holds; the runtime cannot be used afterwards."""
        ...
