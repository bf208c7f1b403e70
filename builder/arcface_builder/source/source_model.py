"""A source model: the ONNX graph that a build starts from, and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from .fixes import repair
from .known_files import KNOWN_FILES, PACK_TERMS, KnownFile
from .normalisation import Normalisation, check_stated, expected_of_caller
from .preprocessing import Prefix, read_prefix
from .source_finding import SourceFinding

SourceKind = Literal["onnx", "insightface", "checkpoint", "synthetic"]


@dataclass(frozen=True)
class Origin:
    """Where a source model comes from; goes into the manifest as it is.

    Attributes:
        kind: Kind of source.
        name: File name, or what was generated. Not where it lies: that says nothing on another machine.
        sha256: SHA-256 of the file (of the generated graph for a synthetic model).
        known_file: The published file that has this SHA-256.
        terms: What is known of its terms of use.
        synthetic: The weights are random: it recognises nobody.
        depth: "r18" to "r100", of a checkpoint or a synthetic model.
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

    @classmethod
    def of_file(cls, kind: SourceKind, name: str, proto: onnx.ModelProto, sha256: str) -> Origin:
        """Tell an ONNX file's origin by its SHA-256 and by the labels that a synthetic model carries."""
        known = KNOWN_FILES.get(sha256)
        labels = {entry.key: entry.value for entry in proto.metadata_props}
        synthetic = labels.get("synthetic") == "true"
        seed = labels.get("seed", "") if synthetic else ""
        return cls(
            kind,
            name,
            sha256,
            known_file=known.name if known else None,
            terms=known.terms if known else PACK_TERMS if kind == "insightface" else None,
            synthetic=synthetic,
            depth=labels.get("depth") if synthetic else None,
            seed=int(seed) if seed.isdecimal() else None,
        )

    def labels(self) -> dict[str, str]:
        """The labels that ``of_file`` reads back, for a file's metadata."""
        labels = {"synthetic": str(self.synthetic).lower(), "depth": self.depth, "seed": self.seed}
        return {key: str(value) for key, value in labels.items() if value is not None}


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
    def findings(self) -> list[SourceFinding]:
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
        """What a caller of the source model must do with the pixels.

        Raises:
            NotArcFaceError: That is unclear.
            OptionError: What is stated cannot be so.
        """
        if self.stated:
            check_stated(self.stated[0], self.prefix.normalisation)
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
        """Write the source's ONNX file; of a network that was made here, as InsightFace takes it."""
        onnx.save_model(self.proto, path)

    @cached_property
    def _repaired(self) -> tuple[ir.Model, list[SourceFinding]]:
        return repair(self.proto)
