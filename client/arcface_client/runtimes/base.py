"""What a runtime is: a serving graph loaded into this process."""

from __future__ import annotations

from typing import Protocol

from ..contract import Crops, Embeddings


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
