"""Manifests of what is made from an ONNX model: TensorRT plans, and siblings for other runtimes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from ..errors import DeploymentError
from .embedding_space import PrecisionClass, precision_class
from .manifest import Golden, ModelFile
from .schema import (
    STRICT,
    Drift,
    Family,
    ManifestFile,
    Moment,
    Precision,
    Setting,
    Sha256,
    Sm,
    TensorRtVersion,
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
        recorded = self.settings.get("profiles")
        return recorded if isinstance(recorded, int) else 1 + bool(self.settings.get("small_batch_profile"))

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
class RecognitionLoss:
    """What a model loses in a rate of recognition, against the ONNX model on the same pairs.

    Attributes:
        rate: "verification accuracy", or "TAR at FAR 0.001".
        reference: The ONNX model's rate.
        model: The model's.
        loss: The difference.
        lost: Pairs that only the ONNX model is right about.
        gained: Pairs that only the model is right about.
        pairs: All pairs.
        interval: The loss's 95 % confidence interval.
        max_loss: The largest loss that was allowed.
    """

    rate: str
    reference: float
    model: float
    loss: float
    lost: int
    gained: int
    pairs: int
    interval: tuple[float, float]
    max_loss: float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanParity:
    """How far a plan's embeddings are from the source model's, or from what stood for it.

    Attributes:
        largest_drift_cosine: The largest cosine distance over all crops.
        max_drift_cosine: The largest that was allowed.
        crops: How many crops were compared.
        task: What recognition loses, where that was judged in place of the drift; see ``RecognitionLoss``.
        compared_with: What stood for the source model: "source file", "fixed copy", or "served ONNX model".
        details: What else was measured.
    """

    largest_drift_cosine: Drift
    max_drift_cosine: Drift
    crops: int
    compared_with: str
    details: Mapping[str, Any] = Field(default_factory=dict)
    task: tuple[RecognitionLoss, ...] = ()

    @model_validator(mode="after")
    def _check_drift(self) -> Self:
        if not self.task and self.largest_drift_cosine > self.max_drift_cosine:
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
        quantised: The convolutions in int8, by the names of their nodes in the ONNX model.
        parity: The comparison that let it be stored.
        rebuild_command: The command that builds it again.
        tools: Versions of what built it.
        notes: What else is worth knowing of the build.
        refusals: In a repository: why more compact precisions were not taken; empty in a store.
        build_seconds: How long TensorRT took; None in older manifests.
        timing_cache: What the timing cache was good for: "warm", "cold" or "none"; None in older manifests.
        faces_per_s: Crops per second on that GPU in full batches, copies included; None in older manifests.
        golden: A plan's own golden embeddings, in int8; others have the ONNX model's.
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
    quantised: tuple[str, ...] = ()
    parity: PlanParity
    rebuild_command: str
    tools: Mapping[str, str]
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    build_seconds: float | None = None
    timing_cache: str | None = None
    faces_per_s: float | None = None
    golden: Golden | None = None
    schema_version: Literal[1] = 1

    @property
    def created_at(self) -> datetime:
        """When it was built."""
        return datetime.fromisoformat(self.created)

    @property
    def precision_class(self) -> PrecisionClass:
        """Its class of precision."""
        # Where crops calibrated it, the digest of the graph is that of the crops.
        return precision_class(
            self.identity.precision, self.identity.graph_sha256 if self.quantised else None
        )

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
        precision: What that computes in; another processor may compute in another one. "int8" and "mixed"
            are in the file.
        quantised: The convolutions in int8, by the names of their nodes.
        calibration_sha256: SHA-256 of what int8's ranges were computed from.
        golden: The model's own golden embeddings, in int8; others have the ONNX model's.
        onnx_sha256: SHA-256 of the ONNX model's file.
        model_file: The served file.
        parity: The comparison that let it be published.
        rebuild_command: The command that makes it again.
        tools: Versions of what made it.
        faces_per_s: Crops per second on a GPU in full batches, copies included; None without a GPU, and in
            older manifests.
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
    quantised: tuple[str, ...] = ()
    calibration_sha256: Sha256 | None = None
    golden: Golden | None = None
    onnx_sha256: Sha256
    model_file: ModelFile
    parity: PlanParity
    rebuild_command: str
    tools: Mapping[str, str] = Field(default_factory=dict)
    faces_per_s: float | None = None
    schema_version: Literal[1] = 1

    @property
    def precision_class(self) -> PrecisionClass:
        """Its class of precision."""
        return precision_class(self.precision, self.calibration_sha256)


def plan_manifest_paths(root: Path, model: str, version: int) -> list[Path]:
    """The manifests of all plans of a version."""
    return sorted(root.glob(f"{model}-{version}-sm*.manifest.json"))
