"""What makes a plan the plan that is wanted: everything that goes into its build."""

from __future__ import annotations

import re
from typing import Final

from arcface_client.models.manifest import PlanKey, Setting

from ..errors import OptionError

SMALL_BATCH_PROFILE: Final = "small_batch_profile"
"""The setting of a plan that has a second optimisation profile, for few crops."""

CALIBRATION: Final = "calibration"
"""The setting that tells the crops which int8's ranges are of."""

GPU_MODEL: Final = "gpu"
"""The setting of a plan that is for one model of GPU, not for its whole architecture."""

PLATFORM: Final = "platform"
"""The setting of the operating system and processor that a plan is for, as ``linux-x86_64``."""

TYPED_BY: Final = "onnxruntime"
"""The setting of the ONNX Runtime that wrote a precision into the graph."""

_ROOT: Final = "engines"

KEY_PARTS: Final = ("model", "precision", "sm", "tensorrt_version")
"""What of an identity can be read from its key."""

_KEY: Final = re.compile(
    rf"{_ROOT}/trt-(?P<tensorrt_version>[^/]+)/[^/]+/[^/]+/[^/]+/"
    r"(?P<model>[^/]+)-(?P<precision>[^/-]+)-sm(?P<sm>\d+)\.plan"
)


PlanIdentity = PlanKey

__all__ = ["PlanIdentity", "Setting"]


def release_of(version: str) -> tuple[int, ...]:
    """The numbers that a TensorRT version begins with: ``10.0.0b6`` has 10, 0 and 0."""
    numbers = re.split(r"\.?[a-z]", version, maxsplit=1)[0]
    return tuple(int(number) for number in numbers.split("."))


def key_parts(key: str) -> dict[str, str]:
    """Read ``KEY_PARTS`` from a plan's key; nothing from what is none."""
    match = _KEY.fullmatch(key)
    return match.groupdict() if match else {}


def check_sm(sm: str) -> str:
    """Return the SM of file names as it is.

    Raises:
        OptionError: It is none.
    """
    return _expect(r"[1-9]\d{1,2}", "SM", sm, "digits alone, as 86")


def sm_of(compute_capability: str) -> str:
    """Turn a compute capability into the SM of file names: ``8.6`` into ``86``.

    Raises:
        OptionError: It is none.
    """
    _expect(r"[1-9]\d?\.\d", "Compute capability", compute_capability, "major.minor, as 8.6")
    return compute_capability.replace(".", "")


def _expect(pattern: str, name: str, value: str, expected: str) -> str:
    if not re.fullmatch(pattern, value, re.ASCII):
        raise OptionError(f"{name} {value!r} cannot be that of a plan; expected {expected}.")
    return value
