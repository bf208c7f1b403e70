"""A source model: the ONNX graph that a build starts from, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import onnx
import onnx_ir as ir

from ..graph.serving import serving_graph
from .fixes import Issue, fix_issues
from .preprocessing import (
    PYTORCH,
    InputPreprocessing,
    Normalisation,
    check_stated,
    expected_of_caller,
    read_preprocessing,
)

SourceKind = Literal["onnx", "insightface", "checkpoint", "synthetic"]

PACK_TERMS: Final = "InsightFace's packs are for non-commercial research only"


KNOWN_FILES: Final[Mapping[str, str]] = {
    "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43": "buffalo_l/w600k_r50.onnx",
    "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf": "antelopev2/glintr100.onnx",
    "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f": "buffalo_s/w600k_mbf.onnx",
}
"""InsightFace's recognition models by SHA-256; their callers normalise pixels to -1 to 1."""


@dataclass(frozen=True)
class Origin:
    """Where a source model comes from, as manifests hold it.

    Attributes:
        kind: Kind of source.
        name: File name, or what was generated. Not its folder, which means nothing on another machine.
        sha256: SHA-256 of the file (of the generated graph for a synthetic model).
        known_file: The published file that has this SHA-256.
        terms: Its terms of use, if they are known.
        synthetic: The weights are random, so that it recognises no one.
        depth: "r18" to "r200", of a checkpoint or a synthetic model.
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
        """Identify an ONNX file by its SHA-256 and by the labels that a synthetic model has."""
        known = KNOWN_FILES.get(sha256)
        labels = {entry.key: entry.value for entry in proto.metadata_props}
        synthetic = labels.get("synthetic") == "true"
        seed = labels.get("seed", "") if synthetic else ""
        return cls(
            kind,
            name,
            sha256,
            known_file=known,
            terms=PACK_TERMS if known or kind == "insightface" else None,
            synthetic=synthetic,
            depth=labels.get("depth") if synthetic else None,
            seed=int(seed) if seed.isdecimal() else None,
        )

    def labels(self) -> dict[str, str]:
        """The labels that ``of_file`` reads, for a file's metadata."""
        labels = {"synthetic": str(self.synthetic).lower(), "depth": self.depth, "seed": self.seed}
        return {key: str(value) for key, value in labels.items() if value is not None}


@dataclass(frozen=True)
class SourceModel:
    """A source model, with its fixed copy and its preprocessing.

    What is derived raises NotArcFaceError if the model cannot be fixed, or does more to its input than
    normalise it.

    Attributes:
        proto: The model as it is in its file.
        origin: Where it comes from.
        stated: What callers must do with the pixels and who says so, where it need not be inferred.
    """

    proto: onnx.ModelProto
    origin: Origin
    stated: tuple[Normalisation, str] | None = None

    @property
    def fixed(self) -> ir.Model:
        """The copy with its issues fixed."""
        return self._fixed_and_issues[0]

    @property
    def issues(self) -> list[Issue]:
        """The issues of the file."""
        return self._fixed_and_issues[1]

    @cached_property
    def preprocessing(self) -> InputPreprocessing:
        """What the graph itself does to the image."""
        return read_preprocessing(self.fixed)

    @property
    def caller(self) -> Normalisation:
        """What a caller of the source model must do with the pixels.

        Raises:
            NotArcFaceError: It cannot be inferred.
            OptionError: What is stated cannot be true.
        """
        if self.stated:
            check_stated(self.stated[0], self.preprocessing.normalisation)
            return self.stated[0]
        return PYTORCH if self.origin.known_file else expected_of_caller(self.preprocessing.normalisation)

    @property
    def caller_from(self) -> str:
        """How ``caller`` is known."""
        if self.stated:
            return self.stated[1]
        return "the file's SHA-256" if self.origin.known_file else "what the graph computes"

    @property
    def normalisation(self) -> Normalisation:
        """All that happens to the pixels before the first convolution, by the caller and by the graph."""
        return self.caller.then(self.preprocessing.normalisation)

    def serving_graph(self, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """Build its serving graph; see ``graph.serving``."""
        total = self.normalisation
        return serving_graph(self.fixed, total.mean, total.std, metadata=metadata or {})

    def save(self, path: Path) -> None:
        """Write the source's ONNX file, which InsightFace reads."""
        onnx.save_model(self.proto, path)

    @cached_property
    def _fixed_and_issues(self) -> tuple[ir.Model, list[Issue]]:
        return fix_issues(self.proto)
