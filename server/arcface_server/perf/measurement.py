"""One figure: a model under a batch size and a concurrency, as perf_analyzer measures it."""

from __future__ import annotations

import csv
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..errors import PerfAnalyzerError
from .binary import PerfAnalyzer

SharedMemory = Literal["none", "system"]

STABILITY_PERCENT: Final = 10
"""Three windows in a row must lie this close together for a figure to be settled; perf_analyzer's default."""

_NOT_SETTLED: Final = 2  # perf_analyzer's exit code: pa::STABILITY_ERROR
_ANY_SPREAD_PERCENT: Final = 100_000


@dataclass(frozen=True)
class Load:
    """What is sent, and where.

    Attributes:
        url: ``host:port`` of the server's gRPC service.
        model: Name of the model.
        version: Its version; None is the newest.
        input_data: File that ``write_input_data`` wrote.
        shared_memory: How crops reach a server on the same machine: inside the request, or beside it.
        requests: Requests in each window, of which there are three to ten.
    """

    url: str
    model: str
    version: int | None
    input_data: Path
    shared_memory: SharedMemory
    requests: int


@dataclass(frozen=True)
class Measurement:
    """A figure. Times are those of one request, which carries a whole batch.

    Attributes:
        batch_size: Crops in a request.
        concurrency: Requests that are under way at a time.
        faces_per_s: Crops embedded a second.
        p50_ms: Median time of a request, as the client sees it; p95 and p99 likewise.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        queue_ms: Mean time in the server's queue.
        compute_ms: Mean time in the backend, its input and output included.
        settled: Whether three windows agreed; without it the figure is a rough one.
    """

    batch_size: int
    concurrency: int
    faces_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float
    settled: bool


def measure(
    perf_analyzer: PerfAnalyzer, load: Load, batch_size: int, concurrency: int, *, settle: bool = True
) -> Measurement:
    """Measure one figure.

    Of a figure that does not settle perf_analyzer reports nothing, so that it is measured once more
    with any spread allowed, and marked.

    Args:
        perf_analyzer: The program.
        load: What to send, and where.
        batch_size: Crops in a request.
        concurrency: Requests that are under way at a time.
        settle: Try for a settled figure first; without it three windows are taken as they are.

    Raises:
        PerfAnalyzerError: perf_analyzer failed; the message has its own reason.
    """
    with tempfile.TemporaryDirectory(prefix="arcface-perf-") as scratch:
        report = Path(scratch, "report.csv")
        for stability_percent in (STABILITY_PERCENT, _ANY_SPREAD_PERCENT)[0 if settle else 1 :]:
            command = [
                str(perf_analyzer.program),
                *arguments(load, batch_size, concurrency, stability_percent),
                "-f",
                str(report),
            ]
            result = subprocess.run(
                command,
                env=perf_analyzer.environment(os.environ),
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode == 0:
                settled = stability_percent == STABILITY_PERCENT
                return parse_report(report.read_text(), batch_size, concurrency, settled=settled)
            if result.returncode != _NOT_SETTLED:
                break
    raise PerfAnalyzerError(
        f"perf_analyzer ended with exit code {result.returncode} at batch {batch_size} and concurrency "
        f"{concurrency}: {_last_line(result.stderr) or _last_line(result.stdout) or 'no reason given'}"
    )


def arguments(load: Load, batch_size: int, concurrency: int, stability_percent: int) -> list[str]:
    """The flags for one figure."""
    flags = ["-m", load.model, "-u", load.url, "-i", "grpc", "-b", str(batch_size)]
    flags += [] if load.version is None else ["-x", str(load.version)]
    flags += ["--concurrency-range", str(concurrency), "--input-data", str(load.input_data)]
    flags += ["--shared-memory", load.shared_memory, "--stability-percentage", str(stability_percent)]
    # Windows of a fixed length hold too few requests of a slow model to agree with each other.
    flags += ["--measurement-mode", "count_windows", "--measurement-request-count", str(load.requests)]
    return flags


def parse_report(text: str, batch_size: int, concurrency: int, *, settled: bool) -> Measurement:
    """Read perf_analyzer's CSV; its times are in microseconds.

    Raises:
        PerfAnalyzerError: It has another form.
    """
    try:
        (row,) = csv.DictReader(text.splitlines())
        compute_us = sum(float(row[f"Server Compute {part}"]) for part in ("Input", "Infer", "Output"))
        return Measurement(
            batch_size=batch_size,
            concurrency=concurrency,
            faces_per_s=float(row["Inferences/Second"]),
            p50_ms=float(row["p50 latency"]) / 1000,
            p95_ms=float(row["p95 latency"]) / 1000,
            p99_ms=float(row["p99 latency"]) / 1000,
            queue_ms=float(row["Server Queue"]) / 1000,
            compute_ms=compute_us / 1000,
            settled=settled,
        )
    except (KeyError, ValueError) as error:
        raise PerfAnalyzerError(
            f"perf_analyzer's report has another form than expected ({error!r}): {text.strip()!r}"
        ) from error


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
