"""A source model: the ONNX graph that a build starts from, and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from .known_files import KNOWN_FILES, KnownFile
from .normalisation import Normalisation, expected_of_caller
from .prefix import Prefix, read_prefix
from .repairs import Finding, repair

SourceKind = Literal["onnx", "insightface", "checkpoint", "synthetic"]


@dataclass(frozen=True)
class Origin:
    """Where a source model comes from; goes into the manifest as it is.

    Attributes:
        kind: Kind of source.
        name: File name, or what was generated. Never a whole path: manifests travel.
        sha256: SHA-256 of the file (of the generated graph for a synthetic model).
        known_file: The published file that has this SHA-256.
        terms: What is known of its terms of use.
        synthetic: The weights are random: it recognises nobody.
        depth: "r18" to "r100", where known.
        seed: Seed of a synthetic model.
    """

    kind: SourceKind
    name: str
    sha256: str
    known_file: str | None = None
    terms: str | None = None
    synthetic: bool = False
    depth: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class SourceModel:
    """A source model as it was read or made, with its mended copy and its preprocessing worked out.

    Attributes:
        proto: The model as it is in its file.
        origin: Where it comes from.
        stated: What callers must do with the pixels, and who says so, where it need not be found out.
    """

    proto: onnx.ModelProto
    origin: Origin
    stated: tuple[Normalisation, str] | None = None

    @property
    def mended(self) -> ir.Model:
        """The mended copy; see ``repairs``. Raises NotArcFaceError if it cannot be mended."""
        return self._repaired[0]

    @property
    def findings(self) -> list[Finding]:
        """What was mended."""
        return self._repaired[1]

    @cached_property
    def prefix(self) -> Prefix:
        """What the graph itself does to the image. Raises NotArcFaceError if that is no normalisation."""
        return read_prefix(self.mended)

    @property
    def known(self) -> KnownFile | None:
        """The published file that this is."""
        return KNOWN_FILES.get(self.origin.sha256)

    @property
    def caller(self) -> Normalisation:
        """What a caller of the source model must do with the pixels. Raises NotArcFaceError if unclear."""
        if self.stated:
            return self.stated[0]
        return self.known.normalisation if self.known else expected_of_caller(self.prefix.normalisation)

    @property
    def caller_from(self) -> str:
        """How ``caller`` is known."""
        if self.stated:
            return self.stated[1]
        return "the file's SHA-256" if self.known else "what the graph computes"

    @property
    def normalisation(self) -> Normalisation:
        """All that happens to the pixels before the first convolution, the graph's part included."""
        return self.caller.then(self.prefix.normalisation)

    def save(self, path: Path) -> None:
        """Write the source-style ONNX file: float32 RGB in, raw 512 numbers out, as InsightFace takes it."""
        onnx.save_model(self.proto, path)

    @cached_property
    def _repaired(self) -> tuple[ir.Model, list[Finding]]:
        return repair(self.proto)
