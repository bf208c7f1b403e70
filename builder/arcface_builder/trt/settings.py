"""The builder's part of the settings of TensorRT."""

from __future__ import annotations

from pathlib import Path

from arcface_client.settings import TensorRtSettings

from ..repository.config import MOST_INSTANCES, check_range
from .options import BuildOptions


def build_options(settings: TensorRtSettings, timing_cache: Path | None = None) -> BuildOptions:
    """What to build; raises OptionError for a value out of its range."""
    if settings.instances is not None:  # not the build's, but known to be wrong before it
        check_range("instances", settings.instances, 1, MOST_INSTANCES)
    return BuildOptions(
        precision=settings.precision,
        max_batch_size=settings.max_batch_size,
        opt_batch_size=settings.opt_batch_size,
        workspace_size_mb=settings.workspace_size_mb,
        hardware_compatible=settings.hardware_compatible,
        small_batch_profile=settings.small_batch_profile,
        timing_cache=timing_cache,
    )
