"""The GPU benchmark's results: a JSON file that runs are merged into, and the page made from it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from arcface_builder.source.iresnet import BLOCKS, CHANNELS, FLAT_SIZE
from arcface_client.contract import CROP_SIZE, EMBEDDING_DIM
from report import network as network_name
from report import table

NAME: Final = "gpu"


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
    path = folder / f"{NAME}.json"
    return Findings(**json.loads(path.read_text())) if path.is_file() else Findings()


def save(findings: Findings, folder: Path) -> None:
    """Write the data and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(asdict(findings), indent=1) + "\n")
    (folder / f"{NAME}.md").write_text(page(findings))


def flops(network: str) -> float:
    """Multiplications and additions for one crop."""
    size, before = CROP_SIZE, CHANNELS[0]
    products = size**2 * 27 * CHANNELS[0]
    for count, channels in zip(BLOCKS[network], CHANNELS, strict=True):
        products += size**2 * 9 * before * channels
        size //= 2
        products += size**2 * channels * (9 * channels + before + (count - 1) * 18 * channels)
        before = channels
    return 2.0 * (products + FLAT_SIZE * EMBEDDING_DIM)


def page(findings: Findings) -> str:
    """The page for the documentation."""
    parts = [_HEAD]
    for network in sorted({row["network"] for row in findings.figures}):
        rows = [row for row in findings.figures if row["network"] == network]
        parts += [f"## {network_name(network)}, {flops(network) / 1e9:.1f} GFLOP a crop", ""]
        parts += [table(_COLUMNS, [_cells(row, findings.matrix_tflops) for row in rows]), ""]
    if findings.served:
        served = table(_SERVED_COLUMNS, map(_served_cells, findings.served))
        parts += ["## Through Triton", "", served, ""]
    if findings.rebuilds:
        lines = [f"- {what}: {seconds:.0f} s" for what, seconds in findings.rebuilds.items()]
        parts += ["## Second build, with the timing cache of the first", "", *lines, ""]
    if findings.refused:
        parts += ["## Refused", "", *(f"- {what}: {why}" for what, why in findings.refused.items()), ""]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(findings.matrix_tflops.items()))
    machine = "; ".join(f"{name} {value}" for name, value in findings.machine.items())
    parts += [f"Matrix products of 8192 x 8192 by PyTorch, TFLOP/s: {rates or 'not measured'}.", ""]
    parts += [f"Machine: {machine}.", ""]
    for remark in findings.remarks:
        parts += [textwrap.fill(remark, 110), ""]
    return "\n".join(parts)


_HEAD: Final = """# cuDNN, TensorRT and PyTorch on a GPU

The networks have synthetic weights. Latency is the time from crops in host memory to embeddings in host
memory, one call at a time. Faces per second are measured with calls back to back on the device, with the
copies from the host and to it, and without them. "Share" is the part of the rate that PyTorch's matrix
product reaches in the same precision. Drift is the largest 1 - cosine similarity to the float32 model in
ONNX Runtime. PyTorch's network has other weights, and so no drift. A plan needs the memory of its largest
batch, whatever the batch. "build s" is the time of TensorRT's build, or of cuDNN's load: cold when it
compiles kernels, warm when it finds them in the cache folder.

Made by `benchmarks/gpu.py`; as data: [gpu.json](gpu.json). `make bench-gpu` measures all of this in one
run, and also serves every plan and builds it a second time.
"""
_COLUMNS: Final = (
    *("", "batch", "p50 ms", "p99 ms", "faces/s", "without copies", "TFLOP/s", "share"),
    *("device MB", "build s", "plan MB", "drift"),
)
_SERVED_COLUMNS: Final = (
    *("", "called by", "shared memory", "batch", "concurrency"),
    *("faces/s", "p50 ms", "p99 ms", "settled"),
)
_SETTLED: Final = {True: "yes", False: "no", None: ""}


def _cells(row: Mapping[str, Any], rates: Mapping[str, float]) -> list[str]:
    rate = row["faces_per_s"] * flops(row["network"]) / 1e12
    card = rates.get(row["precision"]) if "CPU" not in row["runtime"] else None
    tuned = f", tuned for {row['tuned_for']}" if row["tuned_for"] else ""
    build = _number(row["build_s"], ".0f") + (f" ({row['timing_cache']})" if row["timing_cache"] else "")
    return [
        f"{row['runtime']} {row['precision']}{tuned}",
        str(row["batch"]),
        _number(row["p50_ms"], ".2f"),
        _number(row["p99_ms"], ".2f"),
        f"{row['faces_per_s']:,.0f}",
        _number(row.get("device_faces_per_s"), ",.0f"),
        f"{rate:.1f}",
        f"{rate / card:.0%}" if card else "",
        _number(row["device_mb"], ",.0f"),
        build,
        _number(row["plan_mb"], ",.0f"),
        _number(row["drift"], ".1e"),
    ]


def _served_cells(row: Mapping[str, Any]) -> list[object]:
    cells = [f"{row['network']} {row['precision']}", row["caller"], row["shared_memory"]]
    cells += [row["batch_size"] or "", row["concurrency"] or "", f"{row['faces_per_s']:,.0f}"]
    cells += [_number(row["p50_ms"], ".2f"), _number(row["p99_ms"], ".2f"), _SETTLED[row["settled"]]]
    return cells


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
