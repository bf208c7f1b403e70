"""What a backend says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..contract import EMBEDDING_DIM


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What was proved of the one that serves.

    Attributes:
        drift_vs_reference: Largest 1 - cosine similarity of the golden crops against the reference.
        reference: What the reference is: "manifest", "onnx sibling" or "itself".
        regression_test: "passed" or "failed"; None when it did not run.
    """

    drift_vs_reference: float | None = None
    reference: str | None = None
    regression_test: str | None = None


@dataclass(frozen=True, kw_only=True)
class CandidateReport:
    """One candidate, as diagnostics list it.

    Attributes:
        candidate: Its name, such as "arcface_r100_trt:3 at localhost:8001".
        state: "serving", "standing by", "refused", "failing" (its breaker is open, or this process could
            not load it) or "settling".
        reason: Why it does not serve; None for the one that does.
        drift: Largest drift of the golden crops; None when not measured.
    """

    candidate: str
    state: str
    reason: str | None = None
    drift: float | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """A backend's state, as ``diagnostics()`` gives it; what is not known is None.

    Attributes:
        backend: "triton", "tensorrt", "onnxruntime" or "insightface".
        model: The model that serves.
        version: Its version.
        engine_path: File of the model, or the server's URL and model.
        precision: Of the plan or file.
        sm: Architecture of the GPU, as "90".
        provider: What ONNX Runtime really runs on.
        batch_size: Largest batch of one run.
        throughput_fps: Faces a second over the last calls.
        latency_ms: Median time of the last calls.
        vram_mb: What loading the model took of the GPU's memory, in MiB; not exact while others load, too.
        validation: What was proved.
        candidates: Every candidate, in order of preference.
        counters: Calls and faces by the candidate that served them, fallbacks by reason, errors.
        shadow: Drift of live crops between plan and ONNX model; None when they are not compared.
    """

    backend: str
    model: str | None = None
    version: int | None = None
    engine_path: str | None = None
    precision: str | None = None
    sm: str | None = None
    provider: str | None = None
    batch_size: int | None = None
    embedding_dim: int = EMBEDDING_DIM
    throughput_fps: float | None = None
    latency_ms: float | None = None
    vram_mb: float | None = None
    validation: Validation = field(default_factory=Validation)
    candidates: tuple[CandidateReport, ...] = ()
    counters: dict[str, Any] = field(default_factory=dict)
    shadow: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
