"""The identity of the plan that a GPU would build: what the store is asked for."""

from __future__ import annotations

import hashlib
import platform
import sys
from typing import Final

import onnxruntime

from arcface_client.contract import Crops

from ..source.onnx_version import OnnxVersion
from ..store import PlanIdentity
from ..store.identity import CALIBRATION, GPU_MODEL, PLATFORM, TYPED_BY
from .compat import can_be_hardware_compatible
from .gpu import Gpu
from .options import MIN_BATCH_SIZE, BuildOptions

_TYPED_BY_ONNX_RUNTIME: Final = ("fp16", "bf16", "int8")


def plan_identity(
    onnx: OnnxVersion, options: BuildOptions, gpu: Gpu, calibration: Crops | None = None
) -> PlanIdentity:
    """Tell what goes into a plan.

    Args:
        onnx: The model.
        options: What is asked for.
        gpu: The GPU that would build it. Its model is part of the identity where TensorRT cannot build for a
            whole compute capability, or was told not to: another model of the same architecture neither
            measured the plan's kernels nor proved them.
        calibration: Crops that int8's ranges are of.
    """
    settings = options.settings() | {PLATFORM: this_platform()}
    if not (options.hardware_compatible and can_be_hardware_compatible(gpu.trt)):
        settings |= {"hardware_compatible": False, GPU_MODEL: gpu.name}
    if options.precision in _TYPED_BY_ONNX_RUNTIME:
        settings[TYPED_BY] = onnxruntime.__version__
    if options.precision == "int8" and calibration is not None:
        settings[CALIBRATION] = hashlib.sha256(calibration.tobytes()).hexdigest()[:12]
    return PlanIdentity(
        model=onnx.name,
        onnx_sha256=onnx.sha256,
        tensorrt_version=gpu.trt.__version__,
        sm=gpu.sm,
        precision=options.precision,
        min_batch_size=MIN_BATCH_SIZE,
        opt_batch_size=options.tuned_for,
        max_batch_size=options.max_batch_size,
        settings=settings,
    )


def this_platform() -> str:
    """The operating system and processor of this machine, as ``linux-x86_64``; a plan fits no other.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html
    """
    return f"{sys.platform}-{platform.machine()}"
