"""What a user may choose about a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arcface_client.models.embedding_space import PRECISIONS
from arcface_client.settings import TensorRtSettings

from ..errors import OptionError, check_range

BUILD_REVISION: Final = 6
"""Part of a plan's key. Raise it with every change to ``engine`` or ``compat`` that makes another plan of the
same graph and options, and with every change to int8's quantisation."""

LEAST_WORKSPACE_MB: Final = 256
SMALL_BATCH: Final = 4
"""The largest batch of the optimisation profile for one crop: a picture seldom has more faces."""

MOST_CROPS: Final = 1024
"""The largest ``max_batch_size``."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a user may choose about a plan.

    Attributes:
        precision: One of ``PRECISIONS``; the graph has to be typed accordingly.
        max_batch_size: Largest batch of the optimisation profile; the smallest is 1.
        opt_batch_size: The batch that TensorRT tunes for; None means the largest.
        workspace_size_mb: Memory that a kernel may use beside its tensors, in MiB.
        hardware_compatible: Fit every GPU of the compute capability, not only this model. TensorRT has that
            from 10.9.
        small_batch_profile: Add an optimisation profile for up to ``SMALL_BATCH`` crops, tuned for one, and
            one in the middle; see ``profiles``.
        timing_cache: File with TensorRT's measurements of kernels, to read and write; None means one in the
            local cache.

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
            raise OptionError(f"Precision {self.precision!r} is unknown; expected {', '.join(PRECISIONS)}.")
        check_range("max_batch_size", self.max_batch_size, 1, MOST_CROPS)
        if not 1 <= self.tuned_for <= self.max_batch_size:
            raise OptionError(
                f"opt_batch_size is {self.tuned_for}; expected 1 to max_batch_size, {self.max_batch_size}."
            )
        if self.workspace_size_mb < LEAST_WORKSPACE_MB:
            raise OptionError(
                f"workspace_size_mb is {self.workspace_size_mb}; expected {LEAST_WORKSPACE_MB} or more."
            )

    @classmethod
    def from_settings(cls, settings: TensorRtSettings, timing_cache: Path | None = None) -> BuildOptions:
        """Take what the settings say of a plan.

        Raises:
            OptionError: A value is out of its range.
        """
        return cls(
            precision=settings.precision,
            max_batch_size=settings.max_batch_size,
            opt_batch_size=settings.opt_batch_size,
            workspace_size_mb=settings.workspace_size_mb,
            hardware_compatible=settings.hardware_compatible,
            small_batch_profile=settings.small_batch_profile,
            timing_cache=timing_cache,
        )

    @property
    def tuned_for(self) -> int:
        """The batch size that TensorRT tunes for."""
        return self.max_batch_size if self.opt_batch_size is None else self.opt_batch_size

    @property
    def profiles(self) -> tuple[tuple[int, int, int], ...]:
        """Smallest, tuned and largest batch of each optimisation profile.

        Kernels for 256 crops take as long for 8 of them as for 30. The profile in the middle is tuned for the
        root of the largest, rounded up to a power of two: 16 of 256, 8 of 32.
        """
        profiles = [(1, self.tuned_for, self.max_batch_size)]
        if self.small_batch_profile and self.tuned_for > 1:
            profiles.append((1, 1, min(SMALL_BATCH, self.max_batch_size)))
            middle = 2 ** math.ceil(math.log2(self.tuned_for) / 2)
            if middle > SMALL_BATCH:
                profiles.append((1, middle, 2 * middle))
        return tuple(profiles)
