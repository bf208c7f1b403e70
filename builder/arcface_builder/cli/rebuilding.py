"""The command that makes a plan again, for its record."""

from __future__ import annotations

import argparse
import shlex
from typing import Final

from arcface_client.settings import TensorRtSettings, variable

from ..source.onnx_version import OnnxVersion

_WITHOUT_FLAG: Final = (
    "tensorrt.hardware_compatible",
    "tensorrt.small_batch_profile",
    "validation.max_drift_cosine",
)
"""The settings of a plan and its gate that only a file or the environment can say."""


def rebuild_command(
    arguments: argparse.Namespace, onnx: OnnxVersion, settings: TensorRtSettings, precision: str
) -> str:
    """What makes the plan of a precision again, whatever a file or the environment say then."""
    command = [
        f"{variable(key)}={str(getattr(settings, key.rpartition('.')[2])).lower()}" for key in _WITHOUT_FLAG
    ]
    command += ["arcface-builder", "compile", "--name", onnx.name, "--version", str(onnx.version)]
    command += ["--repository", str(arguments.repository)]
    command += ["--precision", precision, "--max-batch-size", str(settings.max_batch_size)]
    command += ["--opt-batch-size", str(settings.opt_batch_size or settings.max_batch_size)]
    command += ["--workspace-size-mb", str(settings.workspace_size_mb)]
    if arguments.calibration_dir:  # whatever the precision: the gate compared on these crops
        command += ["--calibration-dir", str(arguments.calibration_dir)]
    return shlex.join(command)
