"""How fast a model is on this GPU, for its manifest: clients prefer the sibling that was faster."""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from arcface_client.contract import Crops

from . import crops as faces

_SECONDS: Final = 0.5


@runtime_checkable
class Timed(Protocol):
    """A runtime on a GPU.

    Attributes:
        max_batch_size: The largest batch that it takes.
    """

    max_batch_size: int

    def back_to_back_s(self, crops: Crops, repeats: int) -> float:
        """Seconds for a batch, with the copies, while the GPU never waits for the host."""
        ...


def faces_per_s(runtime: object) -> float | None:
    """Crops per second in full batches; None for a runtime without a GPU."""
    if not isinstance(runtime, Timed):
        return None
    crops = faces.noise(runtime.max_batch_size)
    once_s = runtime.back_to_back_s(crops, 3)
    return round(len(crops) / runtime.back_to_back_s(crops, max(3, round(_SECONDS / once_s))), 1)
