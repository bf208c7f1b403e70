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
from .embedding_space import EmbeddingSpace, PrecisionClass, describe_preprocessing
from .golden import from_text, golden_sha256
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
        depth: "r18" to "r100", of a checkpoint or a synthetic model; ``seed`` of the latter.
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

    def __str__(self) -> str:
        text = f"{self.channels}, {Normalisation(self.mean, self.std)}"
        words = {"channels": "channel order", "normalisation": "normalisation"}
        assumed = " and ".join(words[one] for one in self.assumed or ())
        return f"{text} ({assumed} assumed)" if assumed else text

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
    """The source model's embeddings of the golden crops.

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

    @property
    def embedding_dim(self) -> int:
        """D, how many numbers an embedding has."""
        return int(self.contract["output"][2][0])

    @cached_property
    def golden_embeddings(self) -> Embeddings | None:
        """float32 [8, D]; None when they are of other crops than this package's."""
        return from_text(self.golden.embeddings) if self.golden.crops_sha256 == golden_sha256() else None

    def embedding_space(self, precision_class: PrecisionClass | None = "float") -> EmbeddingSpace:
        """The embedding space of this model, or of a plan of another class of precision."""
        pixels = self.preprocessing
        return EmbeddingSpace(
            source_sha256=self.source.sha256,
            preprocessing=describe_preprocessing(pixels.mean, pixels.std, pixels.channels),
            precision_class=precision_class,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanKey:
    """What a plan is built from and for; two builds with equal keys are interchangeable.

    Attributes:
        model: Name of the family of models, for example ``arcface_r100``.
        onnx_sha256: SHA-256 of the ONNX file that the repository serves.
        tensorrt_version: TensorRT's full version, for example ``10.16.1.11``.
        sm: The GPU architecture, for example ``86``.
        precision: One of ``PRECISIONS``.
        min_batch_size: Smallest batch of the optimisation profile.
        opt_batch_size: The batch it is tuned for.
        max_batch_size: Largest batch.
        settings: Everything else that changes the plan.
        graph_sha256: SHA-256 of the converted graph that TensorRT reads; None in older manifests.
        max_drift_cosine: The largest drift that was allowed; None in older manifests.
    """

    model: Family
    onnx_sha256: Sha256
    tensorrt_version: TensorRtVersion
    sm: Sm
    precision: Precision
    min_batch_size: int
    opt_batch_size: int
    max_batch_size: int
    settings: Mapping[str, Setting] = Field(default_factory=dict)
    graph_sha256: Sha256 | None = None
    max_drift_cosine: Drift | None = None

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        if not 1 <= self.min_batch_size <= self.opt_batch_size <= self.max_batch_size:
            raise ValueError("Expected 1 <= min <= opt <= max of the batch sizes")
        return self

    @property
    def filename(self) -> str:
        """Name of the plan's file: ``arcface_r100-fp16-sm86.plan``."""
        return f"{self.model}-{self.precision}-sm{self.sm}.plan"

    @property
    def compute_capability(self) -> str:
        """The architecture as Triton's ``cc_model_filenames`` names it: ``8.6``."""
        return f"{self.sm[:-1]}.{self.sm[-1]}"

    @property
    def profiles(self) -> int:
        """How many optimisation profiles it has."""
        return 1 + bool(self.settings.get("small_batch_profile"))

    @property
    def platform(self) -> str:
        """The operating system and processor that it is for, as ``linux-x86_64``."""
        return str(self.settings.get("platform"))

    @property
    def digest(self) -> str:
        """A short name for exactly this key; the same from one version of this project to the next."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def prefix(self) -> str:
        """The folder of a store that its plan lies in: readable, and with the digest."""
        batches = f"{self.min_batch_size}-{self.opt_batch_size}-{self.max_batch_size}"
        return f"trt-{self.tensorrt_version}/onnx-{self.onnx_sha256:.12}/batch-{batches}/{self.digest}"

    @property
    def key(self) -> str:
        """Where a store keeps the plan, relative to its root."""
        return f"engines/{self.prefix}/{self.filename}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanParity:
    """How far a plan's embeddings are from the source model's, or from what stood for it.

    Attributes:
        largest_drift_cosine: The largest cosine distance over all crops.
        max_drift_cosine: The largest that was allowed.
        crops: How many crops were compared.
        compared_with: What stood for the source model: "source file", "fixed copy", or "served ONNX model".
        details: What else was measured.
    """

    largest_drift_cosine: Drift
    max_drift_cosine: Drift
    crops: int
    compared_with: str
    details: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_drift(self) -> Self:
        if self.largest_drift_cosine > self.max_drift_cosine:
            raise ValueError("Expected largest_drift_cosine of at most max_drift_cosine")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanManifest(ManifestFile):
    """The manifest of a TensorRT plan, in a repository or in a store.

    Attributes:
        identity: The plan's key.
        plan_sha256: SHA-256 of the plan's bytes.
        plan_bytes: How many they are.
        created: When it was built, ISO 8601 with its offset from UTC.
        gpu_name: The GPU that it was built on.
        driver_version: The newest CUDA that its driver knows, as "13.0".
        precisions_used: How many layers run in which precision.
        parity: The comparison that let it be stored.
        rebuild_command: The command that builds it again.
        tools: Versions of what built it.
        notes: What else is worth knowing of the build.
        refusals: In a repository: why more compact precisions were not taken; empty in a store.
        build_seconds: How long TensorRT took; None in older manifests.
        timing_cache: What the timing cache was good for: "warm", "cold" or "none"; None in older manifests.
        schema_version: Version of this record's fields.
    """

    COMMAND = "arcface-builder compile"

    identity: PlanKey
    plan_sha256: Sha256
    plan_bytes: Annotated[int, Field(ge=1, le=1 << 40)]
    created: Moment
    gpu_name: str
    driver_version: str
    precisions_used: Mapping[str, int]
    parity: PlanParity
    rebuild_command: str
    tools: Mapping[str, str]
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    build_seconds: float | None = None
    timing_cache: str | None = None
    schema_version: Literal[1] = 1

    @property
    def created_at(self) -> datetime:
        """When it was built."""
        return datetime.fromisoformat(self.created)

    @property
    def precision_class(self) -> PrecisionClass:
        """Its class of precision."""
        return PRECISIONS[self.identity.precision]

    def has_refused(self, precision: str) -> bool:
        """Whether it is there in place of a plan of that precision."""
        return any(refusal.startswith(f"{precision} was refused: ") for refusal in self.refusals)

    def check_loadable(self, plan: Path, installed_version: str) -> None:
        """Refuse a plan of another TensorRT before that one sees it.

        Raises:
            DeploymentError: The versions differ.
        """
        if self.identity.tensorrt_version != installed_version:
            raise DeploymentError(
                f"{plan} was built by TensorRT {self.identity.tensorrt_version}, and TensorRT "
                f"{installed_version} is installed: a plan fits one version. Run `arcface-builder compile` "
                "with that one."
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SiblingManifest(ManifestFile):
    """The manifest of a version that was made from an ONNX model for another runtime.

    Attributes:
        model: Name of the model in the repository.
        version: Its version, which is the ONNX model's.
        created: When it was made, ISO 8601 with its offset from UTC.
        runtime: What runs it: "cudnn" or "openvino".
        runtime_version: The version that it was checked with.
        device: The processor that it was checked on.
        precision: What that computes in; another processor may compute in another one.
        onnx_sha256: SHA-256 of the ONNX model's file.
        model_file: The served file.
        parity: The comparison that let it be published.
        rebuild_command: The command that makes it again.
        tools: Versions of what made it.
        schema_version: Version of this record's fields.
    """

    COMMAND = "arcface-builder compile"

    model: str
    version: int
    created: Moment
    runtime: str
    runtime_version: str
    device: str
    precision: Precision
    onnx_sha256: Sha256
    model_file: ModelFile
    parity: PlanParity
    rebuild_command: str
    tools: Mapping[str, str] = Field(default_factory=dict)
    schema_version: Literal[1] = 1


def manifest_path(root: Path, model: str, version: int, sm: str | None = None) -> Path:
    """Where a version's manifest is, or that of its plan for an SM."""
    plan = "" if sm is None else f"-sm{sm}"
    return root / f"{model}-{version}{plan}.manifest.json"
