"""The embedding space: what two embeddings must share to be comparable, in one gallery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

PrecisionClass = Literal["float", "int8"]
"""fp32, tf32, fp16 and bf16 agree within the tolerance and are one class; int8 is another."""

PRECISIONS: Final[Mapping[str, PrecisionClass]] = {
    "fp32": "float",
    "tf32": "float",
    "fp16": "float",
    "bf16": "float",
    "mixed": "float",
    "int8": "int8",
}
"""The precisions of a model, each with its class; mixed is int8 where it keeps within the tolerance."""

QUANTISED: Final = ("int8", "mixed")
"""The precisions that are calibrated with face crops."""


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

    def conflict(self, other: EmbeddingSpace) -> str | None:
        """The first known difference, in words; None if there is none."""
        if _differ(self.source_sha256, other.source_sha256):
            theirs, ours = _short(other.source_sha256), _short(self.source_sha256)
            return f"another source model, SHA-256 {theirs}, not {ours}"
        if _differ(self.preprocessing, other.preprocessing):
            return f"another preprocessing, {other.preprocessing}, not {self.preprocessing}"
        if _differ(self.precision_class, other.precision_class):
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
