"""One measured figure, as perf_analyzer reports it and as a line of a table."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Final

from ..errors import PerfAnalyzerError

STABILITY_PERCENT: Final = 10
"""A figure is settled if three windows in a row lie this close together; perf_analyzer's default."""

HEADER: Final = (
    f"{'batch':>5} {'concurrency':>12} {'faces/s':>9}   {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} "
    f"{'queue ms':>9} {'compute ms':>11}"
)
NOT_SETTLED_NOTE: Final = (
    f"* not settled: the windows differ by more than {STABILITY_PERCENT} %. "
    "Measure on a quieter machine, or with more --requests."
)


@dataclass(frozen=True)
class Measurement:
    """A figure. Times are those of one request, which carries a whole batch.

    Attributes:
        batch_size: Crops in a request.
        concurrency: Requests under way at a time.
        faces_per_s: Crops embedded per second.
        p50_ms: Median time of a request, measured by the client.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        queue_ms: Mean time in the server's queue.
        compute_ms: Mean time in the backend, with input and output.
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

    def row(self) -> str:
        """The figure as a line below ``HEADER``."""
        return (
            f"{self.batch_size:>5} {self.concurrency:>12} {self.faces_per_s:>9.1f} "
            f"{' ' if self.settled else '*'} {self.p50_ms:>8.2f} {self.p95_ms:>8.2f} "
            f"{self.p99_ms:>8.2f} {self.queue_ms:>9.2f} {self.compute_ms:>11.2f}"
        )


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
