"""Measurements for a person to read."""

from __future__ import annotations

from typing import Final

from .measurement import STABILITY_PERCENT, Measurement

HEADER: Final = (
    f"{'batch':>5} {'concurrency':>12} {'faces/s':>9}   {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} "
    f"{'queue ms':>9} {'compute ms':>11}"
)
NOT_SETTLED_NOTE: Final = (
    f"* did not settle: its windows differ by more than {STABILITY_PERCENT} %. "
    "Measure it on a quieter machine, or with more --requests."
)


def row(measurement: Measurement) -> str:
    """One line of the table."""
    figure = measurement
    return (
        f"{figure.batch_size:>5} {figure.concurrency:>12} {figure.faces_per_s:>9.1f} "
        f"{' ' if figure.settled else '*'} {figure.p50_ms:>8.2f} {figure.p95_ms:>8.2f} "
        f"{figure.p99_ms:>8.2f} {figure.queue_ms:>9.2f} {figure.compute_ms:>11.2f}"
    )
