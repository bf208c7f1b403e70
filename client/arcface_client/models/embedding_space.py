"""What makes two embeddings comparable: the weights, what happens to the pixels, and how exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

PrecisionClass = Literal["float", "int8"]
"""fp32, tf32, fp16 and bf16 are one class: they agree within the tolerance. int8 is another."""

PRECISIONS: Final[Mapping[str, PrecisionClass]] = {
    "fp32": "float",
    "tf32": "float",
    "fp16": "float",
    "bf16": "float",
    "int8": "int8",
}
"""Every precision that a plan can have, and its class."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpace:
    """Embeddings of one identity may lie in one gallery; those of two may not. None is unknown.

    Attributes:
        source_sha256: SHA-256 of the source model's file.
        preprocessing: What happens to the pixels, as ``describe_preprocessing`` writes it.
        precision_class: How exactly it is computed.
    """

    source_sha256: str | None = None
    preprocessing: str | None = None
    precision_class: PrecisionClass | None = None

    def conflict(self, other: EmbeddingSpace) -> str | None:
        """What speaks against one gallery for both, in words; None if nothing that is known does."""
        if _differ(self.source_sha256, other.source_sha256):
            theirs, ours = _short(other.source_sha256), _short(self.source_sha256)
            return f"another source model, SHA-256 {theirs}, not {ours}"
        if _differ(self.preprocessing, other.preprocessing):
            return f"another preprocessing, {other.preprocessing}, not {self.preprocessing}"
        if _differ(self.precision_class, other.precision_class):
            return f"another class of precision, {other.precision_class}, not {self.precision_class}"
        return None

    def completed(self, other: EmbeddingSpace) -> EmbeddingSpace:
        """With what the other knows, and this does not."""
        return EmbeddingSpace(
            source_sha256=self.source_sha256 or other.source_sha256,
            preprocessing=self.preprocessing or other.preprocessing,
            precision_class=self.precision_class or other.precision_class,
        )


def describe_preprocessing(mean: tuple[float, ...], std: tuple[float, ...], channels: str) -> str:
    """Write a preprocessing as one line: mean and std of R, G and B, and the network's channel order."""
    return f"{channels}, mean {_numbers(mean)}, std {_numbers(std)}"


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in (values[:1] if len({*values}) == 1 else values))


def _differ(left: str | None, right: str | None) -> bool:
    return None not in (left, right) and left != right


def _short(sha256: str | None) -> str:
    return f"{sha256 or '':.12}..."
