"""The parts of a plan's key: TensorRT's versions, architectures, platforms."""

from __future__ import annotations

import platform
import re
import sys
from typing import Final

from ..errors import OptionError

GPU: Final = "gpu"
"""The setting of a plan that is for one model of GPU, not for its whole architecture."""


def release_of(version: str) -> tuple[int, ...]:
    """The numbers that a TensorRT version begins with: ``10.0.0b6`` has 10, 0 and 0."""
    numbers = re.split(r"\.?[a-z]", version, maxsplit=1)[0]
    return tuple(int(number) for number in numbers.split("."))


def check_sm(sm: str) -> str:
    """Return the SM of file names as it is.

    Raises:
        OptionError: It is not one.
    """
    if not re.fullmatch(r"[1-9]\d{1,2}", sm, re.ASCII):
        raise OptionError(f"SM {sm!r} is not an architecture; expected digits, for example 86.")
    return sm


def sm_of(compute_capability: str) -> str:
    """Turn a compute capability into the SM of file names: ``8.6`` into ``86``.

    Raises:
        OptionError: It is not one.
    """
    if not re.fullmatch(r"[1-9]\d?\.\d", compute_capability, re.ASCII):
        raise OptionError(
            f"Compute capability {compute_capability!r} is not one; expected major.minor, for example 8.6."
        )
    return compute_capability.replace(".", "")


def this_platform() -> str:
    """The operating system and processor of this machine, for example ``linux-x86_64``; a plan fits no other.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html
    """
    return f"{sys.platform}-{platform.machine()}"
