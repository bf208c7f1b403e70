"""Measure a model with perf_analyzer, one batch size and concurrency at a time."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Final, Literal
from urllib.request import urlopen

from arcface_client.contract import CROP_SHAPE, INPUT_NAME, Crops
from arcface_client.errors import ServerUnavailableError

from ..errors import PerfAnalyzerError
from .binary import PerfAnalyzer, last_line

SharedMemory = Literal["none", "system"]
Protocol = Literal["grpc", "http"]

CROP_COUNT: Final = 32
"""How many different crops are sent in turn; at most so many are read from a folder."""

STABILITY_PERCENT: Final = 10
"""A figure is settled if three windows in a row lie this close together; perf_analyzer's default."""

HEADER: Final = (
    f"{'batch':>5} {'load':>12} {'faces/s':>9}   {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} "
    f"{'queue ms':>9} {'compute ms':>11}"
)
NOT_SETTLED_NOTE: Final = (
    f"* not settled: the windows differ by more than {STABILITY_PERCENT} %. "
    "Measure on a quieter machine, or with more --requests."
)

_NOT_SETTLED: Final = 2  # perf_analyzer's exit code STABILITY_ERROR
_ANY_SPREAD_PERCENT: Final = 100_000


@dataclass(frozen=True)
class Load:
    """What is sent, and where.

    Attributes:
        url: ``host:port`` of the server's service for the protocol.
        model: Name of the model.
        version: Its version; None means the newest.
        input_data: File that ``write_input_data`` wrote.
        shared_memory: Whether crops reach a server on this machine inside the request or in shared memory.
        requests: Requests in each window; three to ten windows are measured.
        protocol: How requests are sent.
    """

    url: str
    model: str
    version: int | None
    input_data: Path
    shared_memory: SharedMemory
    requests: int
    protocol: Protocol = "grpc"


@dataclass(frozen=True)
class Measurement:
    """A figure. Times are those of one request, which carries a whole batch.

    Attributes:
        batch_size: Crops in a request.
        concurrency: Requests under way at a time; None where they were sent at a rate.
        faces_per_s: Crops embedded per second.
        p50_ms: Median time of a request, measured by the client.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        queue_ms: Mean time in the server's queue.
        compute_ms: Mean time in the backend, with input and output.
        settled: Whether three windows agreed; without it the figure is a rough one.
        request_rate: Requests sent in a second, whether or not others were answered.
    """

    batch_size: int
    concurrency: int | None
    faces_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float
    settled: bool
    request_rate: int | None = None

    @property
    def load(self) -> str:
        """The concurrency, or the rate as "40/s"."""
        return f"{self.request_rate}/s" if self.concurrency is None else str(self.concurrency)

    def row(self) -> str:
        """The figure as a line below ``HEADER``."""
        return (
            f"{self.batch_size:>5} {self.load:>12} {self.faces_per_s:>9.1f} "
            f"{' ' if self.settled else '*'} {self.p50_ms:>8.2f} {self.p95_ms:>8.2f} "
            f"{self.p99_ms:>8.2f} {self.queue_ms:>9.2f} {self.compute_ms:>11.2f}"
        )


def largest_batch(url: str, model: str, version: int | None, protocol: Protocol) -> int | None:
    """Ask the server how many crops the model takes in a request; None if it does not say.

    Raises:
        ArcFaceError: No server answers there, or it does not serve the model.
    """
    if protocol == "grpc":
        from arcface_client import EmbeddingClient  # imports gRPC, which `--help` does not need

        with EmbeddingClient(url, model, version) as client:
            client.ensure_ready()
            return client.max_batch_size
    try:
        with urlopen(f"http://{url}/v2/models/{model}/config", timeout=10) as answer:
            return int(json.load(answer)["max_batch_size"]) or None
    except (OSError, HTTPException, ValueError) as error:
        raise ServerUnavailableError(
            f"No Triton server at {url} serves {model} over HTTP: "
            f"{getattr(error, 'reason', type(error).__name__)}. Check --model, and that --url is HOST:PORT "
            "of its HTTP service, port 8000 by default."
        ) from error


def write_input_data(crops: Crops, file: Path) -> None:
    """Write crops in perf_analyzer's form; it builds its batches from them in turn."""
    steps = [
        {INPUT_NAME: {"b64": base64.b64encode(crop.tobytes()).decode("ascii"), "shape": list(CROP_SHAPE)}}
        for crop in crops
    ]
    file.write_text(json.dumps({"data": steps}))


def measure(
    perf_analyzer: PerfAnalyzer,
    load: Load,
    batch_size: int,
    concurrency: int | None,
    request_rate: int | None = None,
) -> Measurement:
    """Measure one figure.

    perf_analyzer reports nothing about a figure that does not settle. Such a figure is measured once more
    with any spread allowed, and marked. Without a concurrency, requests are sent at a rate, at random
    moments.

    Raises:
        PerfAnalyzerError: perf_analyzer failed; the message has its own reason.
    """
    with tempfile.TemporaryDirectory(prefix="arcface-perf-") as scratch:
        report = Path(scratch, "report.csv")
        for stability_percent in (STABILITY_PERCENT, _ANY_SPREAD_PERCENT):
            flags = _flags(load, batch_size, stability_percent)
            if concurrency is not None:
                flags += ["--concurrency-range", str(concurrency)]
            else:  # as many callers who do not know of each other
                flags += ["--request-rate-range", str(request_rate), "--request-distribution", "poisson"]
            result = subprocess.run(
                [str(perf_analyzer.program), *flags, "-f", str(report)],
                env=perf_analyzer.environment(os.environ),
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode == 0:
                settled = stability_percent == STABILITY_PERCENT
                figure = parse_report(report.read_text(), batch_size, concurrency, settled=settled)
                return replace(figure, request_rate=request_rate)
            if result.returncode != _NOT_SETTLED:
                break
    level = f"rate {request_rate}" if concurrency is None else f"concurrency {concurrency}"
    raise PerfAnalyzerError(
        f"perf_analyzer ended with exit code {result.returncode} at batch {batch_size} and {level}: "
        f"{last_line(result.stderr or result.stdout)}"
    )


def parse_report(text: str, batch_size: int, concurrency: int | None, *, settled: bool) -> Measurement:
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
    except (csv.Error, KeyError, TypeError, ValueError) as error:  # TypeError: a row that is cut short
        raise PerfAnalyzerError(
            f"perf_analyzer's report has another form than expected ({error!r}): {text.strip()!r}"
        ) from error


def _flags(load: Load, batch_size: int, stability_percent: int) -> list[str]:
    flags = ["-m", load.model, "-u", load.url, "-i", load.protocol, "-b", str(batch_size)]
    flags += [] if load.version is None else ["-x", str(load.version)]
    flags += ["--input-data", str(load.input_data)]
    flags += ["--shared-memory", load.shared_memory, "--stability-percentage", str(stability_percent)]
    # Windows of a fixed time would hold too few requests of a slow model to agree with each other.
    flags += ["--measurement-mode", "count_windows", "--measurement-request-count", str(load.requests)]
    return flags
