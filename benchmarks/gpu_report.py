"""The GPU benchmark's results: a JSON file that runs are merged into; report.py makes the page of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

NAME: Final = "gpu.json"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One runtime at one batch size.

    Attributes:
        network: A depth, for example "r100".
        runtime: The runtime with its version.
        precision: Its precision.
        tuned_for: The batch size that the plan is tuned for; 0 without tuning.
        batch: Crops in a call.
        p50_ms: Median time from crops in host memory to embeddings in host memory.
        p99_ms: 99th percentile.
        faces_per_s: Crops per second when the device never waits for the host, copies included.
        device_faces_per_s: The same without the copies from the host and to it.
        device_mb: Memory on the device, in MiB.
        build_s: Time of the plan's build, of cuDNN's load, or of torch.compile.
        timing_cache: Whether the build had timings or kernels: "warm", "cold" or "none".
        plan_mb: The plan's size, in MiB.
        drift: The largest 1 - cosine similarity to the float32 model in ONNX Runtime.
    """

    network: str
    runtime: str
    precision: str
    tuned_for: int = 0
    batch: int
    p50_ms: float | None
    p99_ms: float | None
    faces_per_s: float
    device_faces_per_s: float | None = None
    device_mb: float | None = None
    build_s: float | None = None
    timing_cache: str | None = None
    plan_mb: float | None = None
    drift: float | None = None


@dataclass
class Findings:
    """Everything that was measured, in all runs.

    Attributes:
        machine: The GPU, its driver, TensorRT, PyTorch.
        matrix_tflops: Rate of PyTorch's matrix product in each precision.
        figures: The runtimes alone.
        served: Through Triton: the figures of perf_analyzer and of the client.
        rebuilds: Seconds of a plan's second build, with the timing cache that the first one left.
        refused: Plans that could not be built, and why.
        remarks: Further notes for the reader, written by hand into the JSON file.
    """

    machine: dict[str, str] = field(default_factory=dict)
    matrix_tflops: dict[str, float] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    served: list[dict[str, Any]] = field(default_factory=list)
    rebuilds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, figures: Iterable[Figure]) -> None:
        """Add figures; they replace older ones of the same runtime and batch."""
        keys = ("network", "runtime", "precision", "tuned_for", "batch")
        self.figures = _merged(self.figures, [asdict(figure) for figure in figures], keys)

    def add_served(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add figures through Triton, which replace older ones too."""
        keys = ("network", "precision", "caller", "shared_memory", "batch_size", "concurrency")
        self.served = _merged(self.served, [dict(row) for row in rows], keys)


def _merged(
    old: list[dict[str, Any]], new: list[dict[str, Any]], keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    rows = {tuple(row[key] for key in keys): row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


def load(folder: Path) -> Findings:
    """Read the results of earlier runs."""
    path = folder / NAME
    return Findings(**json.loads(path.read_text())) if path.is_file() else Findings()


def save(findings: Findings, folder: Path) -> None:
    """Write the results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(json.dumps(asdict(findings), indent=1) + "\n")
