"""Throughput against latency, one line for each system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from ..errors import InputError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES: Final = (".svg", ".png", ".pdf")


def check_plot(path: Path) -> None:
    """Check that a plot can be drawn.

    Raises:
        InputError: The file's name ends in nothing that can be written.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}.")
    require("matplotlib", extra="report", purpose="The plot")


def save_plot(file: BinaryIO, suffix: str, systems: Sequence[Mapping[str, Any]]) -> None:
    """Draw a benchmark's systems, as its JSON has them, into a file of the type that a suffix names."""
    draw(systems).savefig(file, format=suffix.lower().removeprefix("."), dpi=150)


def draw(systems: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a line for each of a benchmark's systems, as its JSON has them: a point for each batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for system in systems:
        points = [(one["p50_ms"], one["throughput_fps"], one["batch_size"]) for one in system["figures"]]
        latencies, speeds, _ = zip(*points, strict=True)
        axes.plot(latencies, speeds, marker="o", label=system["name"].replace("$", r"\$"))
        for latency, speed, size in points:
            axes.annotate(str(size), (latency, speed), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="median latency of a call, ms (at the points: crops in a call)", ylabel="faces a second")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
