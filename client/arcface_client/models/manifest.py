"""Manifests: what ``arcface_builder`` records of a model or a plan, as JSON, and this package reads.

A model's manifest lies in the repository's root, which Triton passes over; a stored plan's beside the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from ..contract import EMBEDDING_DIM, INPUT_SPEC, Embeddings, output_spec
from .embedding_space import EmbeddingSpace, PrecisionClass
from .golden import from_text, golden_sha256, to_text
from .normalisation import Normalisation, Pixels
from .schema import (
    STRICT,
    Drift,
    ManifestFile,
    Moment,
    Sha256,
)

MODEL_FILE: Final = "model.onnx"
"""What Triton's onnxruntime backend looks for in a version's folder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceInfo:
    """Where a source model comes from.

    Attributes:
        kind: "onnx", "insightface", "checkpoint" or "synthetic".
        name: Its file's name, or what was generated.
        sha256: SHA-256 of the file, or of the generated graph.
        known_file: The published file that has this SHA-256.
        terms: What is known of its terms of use.
        synthetic: Whether the weights are random.
        depth: "r18" to "r200", of a checkpoint or a synthetic model; ``seed`` of the latter.
    """

    kind: str
    name: str
    sha256: Sha256
    known_file: str | None = None
    terms: str | None = None
    synthetic: bool = False
    depth: str | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelFile:
    """The served file: its name in the version's folder, size and SHA-256."""

    name: str
    bytes: int
    sha256: Sha256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Preprocessing:
    """What the serving graph does to the pixels before the network.

    Attributes:
        mean: Subtracted from R, G and B, in pixel values 0 to 255.
        std: What R, G and B are divided by then.
        channels: Channel order of the source model's input, "RGB" or "BGR"; the serving graph's is BGR.
        caller_mean: What a caller of the source itself subtracts, from R, G and B; None in older manifests.
        caller_std: What a caller of the source itself divides by then.
        found_in: How the normalisation is known.
        assumed: Which of the two are assumptions, because neither the graph shows them nor somebody has
            stated them; None in older manifests.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: str
    caller_mean: tuple[float, float, float] | None = None
    caller_std: tuple[float, float, float] | None = None
    found_in: str = "unknown"
    assumed: tuple[Literal["channels", "normalisation"], ...] | None = None

    @property
    def pixels(self) -> str:
        """The channel order and the normalisation as one line."""
        return f"{self.channels}, {Normalisation(self.mean, self.std)}"

    def __str__(self) -> str:
        words = {"channels": "channel order", "normalisation": "normalisation"}
        assumed = " and ".join(words[one] for one in self.assumed or ())
        return f"{self.pixels} ({assumed} assumed)" if assumed else self.pixels

    @property
    def caller(self) -> Pixels | None:
        """What a caller of the source does; None in older manifests."""
        if self.caller_mean is None or self.caller_std is None:
            return None
        return Pixels(
            "BGR" if self.channels == "BGR" else "RGB", Normalisation(self.caller_mean, self.caller_std)
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelParity:
    """How exactly the served file gives the source's embeddings.

    Attributes:
        max_abs_difference: Largest difference between two numbers of the unit embeddings.
        largest_drift_cosine: Largest cosine distance.
        controls: Largest drift that each negative control causes.
        crops: Number of crops compared.
        batch_sizes: Batch sizes that the serving graph was run with.
        max_drift_cosine: The largest drift that was allowed. This and what follows is missing in older ones.
        between_batches: Largest drift between a crop embedded alone and in a larger batch.
        compared_with: What computed the reference embeddings.
        worst_crops: Indices of the crops with the largest drift, the worst first.
    """

    max_abs_difference: Drift
    largest_drift_cosine: Drift
    controls: Mapping[str, float]
    crops: int
    batch_sizes: tuple[int, ...]
    max_drift_cosine: Drift | None = None
    between_batches: Drift | None = None
    compared_with: str | None = None
    worst_crops: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Golden:
    """The source model's embeddings of the golden crops, or those of a model in int8.

    Attributes:
        crops_sha256: SHA-256 of the golden crops.
        embeddings: Base64 of float32 [8, D], little-endian, unit rows.
    """

    crops_sha256: Sha256
    embeddings: str

    @field_validator("embeddings")
    @classmethod
    def _check_embeddings(cls, text: str, info: ValidationInfo) -> str:
        if info.data.get("crops_sha256") == golden_sha256():
            from_text(text)
        return text

    @classmethod
    def of(cls, embeddings: Embeddings) -> Golden:
        """Record a model's embeddings of the golden crops, float32 [8, D]."""
        return cls(crops_sha256=golden_sha256(), embeddings=to_text(embeddings))

    @cached_property
    def known(self) -> Embeddings | None:
        """float32 [8, D]; None when they are of other crops than this package's."""
        return from_text(self.embeddings) if self.crops_sha256 == golden_sha256() else None


def contract_of(dim: int) -> dict[str, Any]:
    """The tensors of a model whose embeddings have ``dim`` numbers, as its manifest has them."""
    return {"input": INPUT_SPEC, "output": output_spec(dim), "channels": "BGR", "length": 1}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelManifest(ManifestFile):
    """The manifest of a version of an ONNX model.

    Attributes:
        model: Name of the model in the repository.
        version: Its version.
        created: When it was built, ISO 8601 with its offset from UTC.
        source: What the source model is.
        source_location: Where it was, so that it can be opened again.
        repairs: What was wrong with the source, and how it was fixed.
        model_file: The served file.
        preprocessing: What the graph does to the pixels.
        compared_with: What the served file was compared with: the source file itself, or its fixed copy.
        parity: The result of that comparison.
        golden: The reference embeddings.
        rebuild_command: The command that builds it again.
        contract: Tensors: name, Triton data type, shape without batch.
        tools: Versions of what built it.
        schema_version: Version of this record's fields.
    """

    COMMAND = "arcface-builder build"

    model: str
    version: int
    created: Moment
    source: SourceInfo
    source_location: Mapping[str, str | int]
    repairs: tuple[str, ...] = ()
    model_file: ModelFile
    preprocessing: Preprocessing
    compared_with: str
    parity: ModelParity
    golden: Golden
    rebuild_command: str
    contract: Mapping[str, Any] = Field(default_factory=lambda: contract_of(EMBEDDING_DIM))
    tools: Mapping[str, str] = Field(default_factory=dict)
    schema_version: Literal[1] = 1

    @field_validator("contract")
    @classmethod
    def _check_contract(cls, contract: Mapping[str, Any]) -> Mapping[str, Any]:
        match contract:
            case {"output": [_, _, [int()]]}:
                return contract
        raise ValueError("Expected tensors, such as that of the output: name, type and [D]")

    @property
    def embedding_dim(self) -> int:
        """D, how many numbers an embedding has."""
        return int(self.contract["output"][2][0])

    @property
    def output(self) -> str | None:
        """The source's output that was stated as its embedding; None if it was found."""
        name = self.source_location.get("output")
        return None if name is None else str(name)

    def embedding_space(self, precision_class: PrecisionClass | None = "float") -> EmbeddingSpace:
        """The embedding space of this model, or of a plan of another class of precision."""
        return EmbeddingSpace(
            source_sha256=self.source.sha256,
            preprocessing=self.preprocessing.pixels,
            precision_class=precision_class,
        )


def manifest_path(root: Path, model: str, version: int, sm: str | None = None) -> Path:
    """Where a version's manifest is, or that of its plan for an SM."""
    plan = "" if sm is None else f"-sm{sm}"
    return root / f"{model}-{version}{plan}.manifest.json"
