"""The embedding space: what two embeddings must share to be comparable, in one gallery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

SpaceName = Literal["float", "int8"]
"""What a user asks for."""

PrecisionClass = str
"""fp32, tf32, fp16, bf16 and mixed agree within the tolerance and are one class, "float". Each calibration of
int8 is a class of its own, for example "int8-0123456789ab", or "int8" where it is unknown."""

FLOAT: Final = "float"
INT8: Final = "int8"

PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "mixed", INT8)
"""The precisions of a model; mixed is int8 where it keeps within the tolerance."""

QUANTISED: Final = ("int8", "mixed")
"""The precisions that are calibrated with face crops."""


def precision_class(precision: str, calibration_sha256: str | None = None) -> PrecisionClass:
    """The class of a model's precision.

    Args:
        precision: One of ``PRECISIONS``.
        calibration_sha256: SHA-256 of what int8's ranges were computed from, if known.
    """
    if precision != INT8:
        return FLOAT
    return f"{INT8}-{calibration_sha256:.12}" if calibration_sha256 else INT8


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpace:
    """What makes embeddings comparable. None is unknown, and conflicts with nothing.

    Attributes:
        source_sha256: SHA-256 of the source model's file.
        preprocessing: What happens to the pixels, as ``manifest.Preprocessing`` writes it.
        precision_class: How exactly it is computed.
    """

    source_sha256: str | None = None
    preprocessing: str | None = None
    precision_class: PrecisionClass | None = None

    @property
    def is_int8(self) -> bool:
        """Whether it is known to be int8's."""
        return (self.precision_class or FLOAT).startswith(INT8)

    def conflict(self, other: EmbeddingSpace) -> str | None:
        """The first known difference, in words; None if there is none."""
        if _differ(self.source_sha256, other.source_sha256):
            theirs, ours = _short(other.source_sha256), _short(self.source_sha256)
            return f"another source model, SHA-256 {theirs}, not {ours}"
        if _differ(self.preprocessing, other.preprocessing):
            return f"another preprocessing, {other.preprocessing}, not {self.preprocessing}"
        # A calibration that is unknown conflicts with none.
        both = {self.precision_class, other.precision_class}
        if _differ(self.precision_class, other.precision_class) and (FLOAT in both or INT8 not in both):
            return f"another precision class, {other.precision_class}, not {self.precision_class}"
        return None

    def completed(self, other: EmbeddingSpace) -> EmbeddingSpace:
        """Fill what is unknown here from the other."""
        return EmbeddingSpace(
            source_sha256=self.source_sha256 or other.source_sha256,
            preprocessing=self.preprocessing or other.preprocessing,
            precision_class=self.precision_class or other.precision_class,
        )


def _differ(left: str | None, right: str | None) -> bool:
    return None not in (left, right) and left != right


def _short(sha256: str | None) -> str:
    return f"{sha256 or '':.12}..."
