"""Settings of ``compile``, from ``config/pipeline/arcface_tensorrt.yaml`` and what goes before it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arcface_client.layers import Defaults, boolean, read_layers

from .builder import BuildOptions

DEFAULT_PATH: Final = Path("config/pipeline/arcface_tensorrt.yaml")

_DEFAULTS: Final[Defaults] = {
    "arcface_tensorrt.enabled": (boolean, True),
    "tensorrt.precision": (str, "fp16"),
    "tensorrt.max_batch_size": (int, 32),
    "tensorrt.opt_batch_size": (int, None),
    "tensorrt.workspace_size_mb": (int, 1024),
    "tensorrt.hardware_compatible": (boolean, True),
    "tensorrt.fold_preactivation": (boolean, False),
    "tensorrt.instances": (int, 2),
    "tensorrt.engine_s3_bucket": (str, None),
    "validation.max_drift_cosine": (float, 0.001),
}


@dataclass(frozen=True, kw_only=True)
class TensorRtSettings:
    """How plans are made and kept.

    Attributes:
        enabled: Make them at all.
        precision: See ``BuildOptions``, for this and the next five.
        max_batch_size: Largest batch.
        opt_batch_size: The batch that TensorRT tunes for.
        workspace_size_mb: Memory of one kernel, in MiB.
        hardware_compatible: Fit every GPU of the compute capability.
        fold_preactivation: Fold the batch norms in front of convolutions.
        instances: Copies that Triton runs side by side on each GPU.
        engine_s3_bucket: Bucket to share plans through.
        max_drift_cosine: Largest drift that the gate lets pass.
    """

    enabled: bool
    precision: str
    max_batch_size: int
    opt_batch_size: int | None
    workspace_size_mb: int
    hardware_compatible: bool
    fold_preactivation: bool
    instances: int
    engine_s3_bucket: str | None
    max_drift_cosine: float

    def build_options(self, timing_cache: Path | None = None) -> BuildOptions:
        """The builder's part; raises OptionError for a value out of its range."""
        return BuildOptions(
            precision=self.precision,
            max_batch_size=self.max_batch_size,
            opt_batch_size=self.opt_batch_size,
            workspace_size_mb=self.workspace_size_mb,
            hardware_compatible=self.hardware_compatible,
            fold_preactivation=self.fold_preactivation,
            timing_cache=timing_cache,
        )


def load_tensorrt_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    arguments: Mapping[str, object] | None = None,
) -> TensorRtSettings:
    """Read the settings.

    Args:
        path: A YAML file; None takes ``config/pipeline/arcface_tensorrt.yaml`` where that exists.
        environment: Environment variables.
        arguments: Values by key that go before all others; those that are None do not count.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown, or a value is of the wrong kind.
    """
    if path is None and DEFAULT_PATH.is_file():
        path = DEFAULT_PATH
    values = read_layers(_DEFAULTS, path, environment=environment, arguments=arguments)
    return TensorRtSettings(**{key.rpartition(".")[2]: value for key, value in values.items()})
