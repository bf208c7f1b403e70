"""Published ArcFace files by SHA-256: what they are, and the normalisation that they were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .normalisation import PYTORCH, Normalisation


@dataclass(frozen=True)
class KnownFile:
    """A published file.

    Attributes:
        name: What it is called where it was published.
        normalisation: What the caller must do with the pixels.
        terms: What its publisher says about its use.
    """

    name: str
    normalisation: Normalisation
    terms: str


PACK_TERMS: Final = "InsightFace's packs are for non-commercial research only"

KNOWN_FILES: Final[Mapping[str, KnownFile]] = {
    "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43": KnownFile(
        "buffalo_l/w600k_r50.onnx", PYTORCH, PACK_TERMS
    ),
    "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf": KnownFile(
        "antelopev2/glintr100.onnx", PYTORCH, PACK_TERMS
    ),
    "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f": KnownFile(
        "buffalo_s/w600k_mbf.onnx", PYTORCH, PACK_TERMS
    ),
}

AMBIGUOUS_NAMES: Final[Mapping[str, str]] = {
    "glintr100.onnx": "InsightFace's antelopev2 and fal's AuraFace publish different weights under this name",
    "w600k_mbf.onnx": "copies with other contents than the pack's go round under this name",
    "w600k_r50.onnx": "the pack's own file has another SHA-256; converted copies often keep the name",
    "arcface_r100_v1.onnx": "several conversions from MXNet go round under this name",
    "model.onnx": "any model may be called that",
}
"""File names that do not tell which weights are inside, with the reason."""
