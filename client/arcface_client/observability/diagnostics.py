"""What a backend says of itself, and of how it served a call."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

HERE: Final = "this process"
"""Where a source in this process is."""


@dataclass(frozen=True)
class Source:
    """A replica that embedded crops of a call.

    Attributes:
        backend: "triton", "tensorrt", "onnxruntime" or "insightface".
        model: The model's name.
        version: Its version; None if it has none.
        where: ``host:port`` of the server, or "this process".
        crops: How many crops of the call it embedded.
    """

    backend: str
    model: str
    version: int | None
    where: str
    crops: int

    def __str__(self) -> str:
        version = "" if self.version is None else f":{self.version}"
        return f"{self.model}{version} at {self.where}"


@dataclass(frozen=True)
class Refusal:
    """A candidate that did not serve, and why."""

    candidate: str
    reason: str


@dataclass(frozen=True)
class Served:
    """How a call was served.

    Attributes:
        sources: The replicas that embedded its crops, in order of use; several only if one failed in the
            middle of the call.
        refusals: The candidates that are preferred to the last source, and why they were not used.
    """

    sources: tuple[Source, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def fell_back(self) -> bool:
        """Whether another replica than the first choice embedded some of the crops."""
        return bool(self.refusals) or len(self.sources) > 1


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What was proved of the model that serves.

    Attributes:
        drift_vs_reference: Largest cosine distance of the golden crops' embeddings from the reference
            embeddings.
        reference: Where the reference embeddings come from: "manifest", "onnx sibling" or "itself".
        regression_test: "passed" or "failed"; None if it did not run.
    """

    drift_vs_reference: float | None = None
    reference: str | None = None
    regression_test: str | None = None


@dataclass(frozen=True, kw_only=True)
class CandidateReport:
    """One candidate, as diagnostics list it.

    Attributes:
        candidate: Its name, for example "arcface_r100_trt:3 at localhost:8001".
        state: "serving"; "standing by"; "canary"; "cooling down" (right again, but it failed a moment ago);
            "failing" (it is away, or calls to it failed); "refused" (it cannot serve before something is
            fixed); "not the release".
        reason: Why it does not serve; None for the one that does.
        drift: Largest drift of the golden crops; None if it was not measured.
    """

    candidate: str
    state: str
    reason: str | None = None
    drift: float | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """A backend's state, as ``diagnostics()`` returns it; what is not known is None.

    Attributes:
        backend: "triton", "tensorrt", "onnxruntime" or "insightface".
        model: The model that serves.
        version: Its version.
        engine_path: File of the model, or the server's URL and model.
        precision: Of the plan or file.
        sm: Architecture of the GPU, for example "90".
        provider: The execution provider that ONNX Runtime uses.
        batch_size: Largest batch of one run.
        embedding_dim: Numbers of an embedding.
        throughput_fps: Faces a second while calls were under way, over the last calls.
        latency_ms: Median time of the last calls.
        vram_mb: GPU memory that loading the model took, in MiB; not exact while other processes load models.
        validation: What was proved.
        candidates: Every candidate, in order of preference.
        counters: Calls and faces by the replica that served them, fallbacks by reason, errors.
        shadow: Drift of live crops between plan and ONNX model; None if they are not compared.
    """

    backend: str
    model: str | None = None
    version: int | None = None
    engine_path: str | None = None
    precision: str | None = None
    sm: str | None = None
    provider: str | None = None
    batch_size: int | None = None
    embedding_dim: int | None = None
    throughput_fps: float | None = None
    latency_ms: float | None = None
    vram_mb: float | None = None
    validation: Validation = field(default_factory=Validation)
    candidates: tuple[CandidateReport, ...] = ()
    counters: dict[str, Any] = field(default_factory=dict)
    shadow: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)
