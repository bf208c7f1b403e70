"""The builder's part of the settings of TensorRT."""

from __future__ import annotations

from pathlib import Path

from arcface_client.tensorrt_settings import TensorRtSettings

from .builder import BuildOptions


def build_options(settings: TensorRtSettings, timing_cache: Path | None = None) -> BuildOptions:
    """What to build; raises OptionError for a value out of its range."""
    return BuildOptions(
        precision=settings.precision,
        max_batch_size=settings.max_batch_size,
        opt_batch_size=settings.opt_batch_size,
        workspace_size_mb=settings.workspace_size_mb,
        hardware_compatible=settings.hardware_compatible,
        small_batch_profile=settings.small_batch_profile,
        timing_cache=timing_cache,
    )
