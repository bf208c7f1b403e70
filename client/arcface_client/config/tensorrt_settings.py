"""Settings of TensorRT: ``config/pipeline/arcface_tensorrt.yaml`` and what goes before it; see ``layers``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..triton.limits import DEFAULT_MAX_DRIFT_COSINE
from .layers import BOOLEAN, TEXT, TOLERANCE, WHOLE, Defaults, one_of, read_layers

DEFAULT_PATH: Final = Path("config/pipeline/arcface_tensorrt.yaml")

Enabled = Literal["auto", "required", "off"]
"""What ``arcface_tensorrt.enabled`` says: "auto", true ("required") or false ("off")."""

_ENABLED: Final = one_of({"auto": "auto", "true": "required", "false": "off"})

_DEFAULTS: Final[Defaults] = {
    "arcface_tensorrt.enabled": (_ENABLED, "auto"),
    "tensorrt.precision": (TEXT, "fp16"),
    "tensorrt.max_batch_size": (WHOLE, 32),
    "tensorrt.opt_batch_size": (WHOLE, None),
    "tensorrt.workspace_size_mb": (WHOLE, 1024),
    "tensorrt.hardware_compatible": (BOOLEAN, True),
    "tensorrt.small_batch_profile": (BOOLEAN, True),
    "tensorrt.instances": (WHOLE, None),
    "tensorrt.engine_s3_bucket": (TEXT, None),
    "validation.max_drift_cosine": (TOLERANCE, DEFAULT_MAX_DRIFT_COSINE),
}


@dataclass(frozen=True, kw_only=True)
class TensorRtSettings:
    """How plans are made and kept, and whether they are used.

    Attributes:
        enabled: "auto": used when one is there and right; "required": nothing else is; "off": none is made
            or used.
        precision: Of the plan: fp32, tf32, fp16, bf16 or int8.
        max_batch_size: Largest batch.
        opt_batch_size: The batch that TensorRT tunes for; None is the largest.
        workspace_size_mb: Memory of one kernel, in MiB.
        hardware_compatible: Fit every GPU of the compute capability.
        small_batch_profile: Tune kernels for a crop alone as well, which serve up to four.
        instances: Copies that Triton runs side by side on each GPU; None is what the model has, or 2.
        engine_s3_bucket: Bucket to share plans through.
        max_drift_cosine: Largest drift that the gate lets pass.
    """

    enabled: Enabled
    precision: str
    max_batch_size: int
    opt_batch_size: int | None
    workspace_size_mb: int
    hardware_compatible: bool
    small_batch_profile: bool
    instances: int | None
    engine_s3_bucket: str | None
    max_drift_cosine: float


def load_tensorrt_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    arguments: Mapping[str, object] | None = None,
) -> TensorRtSettings:
    """Read the settings; path, environment, arguments and errors are those of ``layers.read_layers``."""
    values = read_layers(
        _DEFAULTS,
        path,
        usual_path=DEFAULT_PATH,
        environment=environment,
        arguments=arguments,
        others=("ARCFACE_EMBEDDING_", "ARCFACE_TRITON_"),
    )
    return TensorRtSettings(**{key.rpartition(".")[2]: value for key, value in values.items()})
