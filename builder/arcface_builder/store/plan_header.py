"""Which TensorRT wrote a plan, from its first bytes: nothing is deserialised."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from ..errors import PlanDamagedError
from .identity import release_of

HEADER_BYTES: Final = 28

# TensorRT's, as trtexec's --getPlanVersionOnly reads it (the layout is documented nowhere else), and
# TensorRT-RTX's, which is laid out alike. Others end alike, as TensorRT 8.5's b"ptrt", and where their
# version stands nobody has told.
_VERSIONED: Final = (b"ftrt", b"vtrt")
_FAMILY: Final = b"trt"
_KNOWN_LAYOUT: Final = bytes(4)


class PlanVersion(NamedTuple):
    """The version in a plan's header; of the build number it holds the low eight bits."""

    major: int
    minor: int
    patch: int
    build: int

    def __str__(self) -> str:
        return ".".join(map(str, self))

    def may_be(self, version: str) -> bool:
        """Whether this can be the header of a plan by TensorRT of that full version."""
        parts = list(release_of(version))
        parts[3:] = [part & 0xFF for part in parts[3:]]
        return list(self[: len(parts)]) == parts


def plan_version(plan: Path | bytes) -> PlanVersion | None:
    """Read which TensorRT wrote a plan; None where it says it in no way that is known, as those of 8.5.

    Args:
        plan: A plan's file, or its first ``HEADER_BYTES`` at least.

    Raises:
        PlanDamagedError: These are not the first bytes of a plan.
    """
    header = plan[:HEADER_BYTES] if isinstance(plan, bytes) else read_header(plan)
    magic, layout = header[:4], header[4:8]
    if magic[1:] != _FAMILY or len(header) < HEADER_BYTES:
        raise PlanDamagedError(
            f"A file that begins with {header[:8]!r} is no TensorRT plan; expected b'ftrt' or the like, "
            f"and {HEADER_BYTES} bytes at least."
        )
    if magic not in _VERSIONED or layout != _KNOWN_LAYOUT:
        return None
    return PlanVersion(*header[24:HEADER_BYTES])


def read_header(path: Path) -> bytes:
    """The first bytes of a file, as many as ``plan_version`` looks at."""
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)
