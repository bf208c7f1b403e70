"""Which TensorRT wrote a plan, from its first bytes: nothing is deserialised."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from ..errors import PlanDamagedError

HEADER_BYTES: Final = 28

# TensorRT from 8.6 on, and TensorRT-RTX, which lays its header out alike. As trtexec's
# --getPlanVersionOnly reads it: the layout is documented nowhere else.
_VERSIONED: Final = (b"ftrt", b"vtrt")
# TensorRT 8.5: another layout, whose version nobody has told.
_UNVERSIONED: Final = b"ptrt"


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
        parts = [int(part) for part in version.split(".")]
        parts[3:] = [part & 0xFF for part in parts[3:]]
        return list(self[: len(parts)]) == parts


def plan_version(plan: Path | bytes) -> PlanVersion | None:
    """Read which TensorRT wrote a plan; None where the plan does not say it, as those of 8.5.

    Args:
        plan: A plan's file, or its first ``HEADER_BYTES`` at least.

    Raises:
        PlanDamagedError: These are not the first bytes of a plan.
    """
    header = plan[:HEADER_BYTES] if isinstance(plan, bytes) else read_header(plan)
    magic, layout = header[:4], header[4:8]
    if magic == _UNVERSIONED:
        return None
    if magic not in _VERSIONED or len(header) < HEADER_BYTES:
        raise PlanDamagedError(
            f"A file that begins with {header[:8]!r} is no TensorRT plan; expected one of "
            f"{', '.join(repr(magic) for magic in (*_VERSIONED, _UNVERSIONED))}, whole."
        )
    if any(layout):
        raise PlanDamagedError(
            f"The plan's header is of the unknown layout {int.from_bytes(layout, 'little')}; expected 0. "
            "It was written by a newer TensorRT than this version knows."
        )
    return PlanVersion(*header[24:HEADER_BYTES])


def read_header(path: Path) -> bytes:
    """The first bytes of a file, as many as ``plan_version`` looks at."""
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)
