"""What a user may choose about a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arcface_client.models.embedding_space import PRECISIONS

from ..errors import OptionError
from ..store.identity import SMALL_BATCH_PROFILE, Setting

BUILD_REVISION: Final = 3
"""Part of a plan's identity, so that no plan of an older build is taken for the same. To be raised with every
change that makes other plans of the same options: here, in ``builder`` and ``toolkit``, and in what types the
graph, ``precision``, ``quantisation`` and the helpers of theirs that edit it."""

MIN_BATCH_SIZE: Final = 1
LEAST_WORKSPACE_MB: Final = 256
SMALL_BATCH: Final = 4
"""The largest batch of the second optimisation profile: the faces of a picture, more often than not."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a user may choose about a plan.

    Attributes:
        precision: One of ``PRECISIONS``; the graph has to be typed accordingly.
        max_batch_size: Largest batch of the optimisation profile; the smallest is 1.
        opt_batch_size: The batch that TensorRT tunes for; None is the largest.
        workspace_size_mb: Memory that a kernel may use beside its tensors, in MiB.
        hardware_compatible: Fit every GPU of the compute capability, not the very model alone. TensorRT
            has that from 10.9.
        small_batch_profile: Tune kernels for a crop alone as well, in an optimisation profile of its own that
            takes up to ``SMALL_BATCH`` crops.
        timing_cache: File to read and write TensorRT's measurements of kernels.

    Raises:
        OptionError: A value is out of its range.
    """

    precision: str = "fp16"
    max_batch_size: int = 32
    opt_batch_size: int | None = None
    workspace_size_mb: int = 1024
    hardware_compatible: bool = True
    small_batch_profile: bool = True
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise OptionError(
                f"Precision {self.precision!r} is unknown; expected {', '.join(PRECISIONS)}.", "precision"
            )
        if not 1 <= self.max_batch_size <= 1024:
            raise OptionError(
                f"max_batch_size is {self.max_batch_size}; expected 1 to 1024.", "max_batch_size"
            )
        if not 1 <= self.tuned_for <= self.max_batch_size:
            raise OptionError(
                f"opt_batch_size is {self.tuned_for}; expected 1 to max_batch_size, {self.max_batch_size}.",
                "opt_batch_size",
                "max_batch_size",
            )
        if self.workspace_size_mb < LEAST_WORKSPACE_MB:
            raise OptionError(
                f"workspace_size_mb is {self.workspace_size_mb}; expected {LEAST_WORKSPACE_MB} or more.",
                "workspace_size_mb",
            )

    @property
    def tuned_for(self) -> int:
        """The batch size that TensorRT tunes for."""
        return self.max_batch_size if self.opt_batch_size is None else self.opt_batch_size

    @property
    def has_small_batch_profile(self) -> bool:
        """Whether there is a profile for few crops beside the one that every batch fits."""
        return self.small_batch_profile and self.tuned_for > 1

    def settings(self) -> dict[str, Setting]:
        """What is part of a plan's identity beside precision and batch sizes."""
        return {
            "workspace_size_mb": self.workspace_size_mb,
            "hardware_compatible": self.hardware_compatible,
            "build_revision": BUILD_REVISION,
            SMALL_BATCH_PROFILE: self.has_small_batch_profile,
        }
