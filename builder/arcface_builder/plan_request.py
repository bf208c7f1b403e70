"""What to compile, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arcface_client.contract import Crops
from arcface_client.triton.limits import DEFAULT_MAX_DRIFT_COSINE

from .source.load import Source
from .source.onnx_version import OnnxVersion
from .trt.options import BuildOptions


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to compile, and how.

    Attributes:
        onnx: The model.
        options: The plan.
        fallback: Build the next more exact precision where one is refused.
        max_drift_cosine: Largest drift that the gate lets pass.
        calibration: Real crops: for int8's ranges, and for the gate.
        source: The source model, for the gate's third point; without it there are two.
        command: The command line that makes the plan of a precision, for the record.
    """

    onnx: OnnxVersion
    options: BuildOptions
    fallback: bool = False
    max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE
    calibration: Crops | None = None
    source: Source | None = None
    command: Callable[[str], str] = "arcface-builder compile --precision {}".format
