"""Throughput against latency, one line for each system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InputError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, str]
"""Median latency in ms, faces a second, and a label."""

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


def lines_of(systems: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """The line of each of a benchmark's systems, as its JSON has them: a point for each batch size."""
    return {
        system["name"]: [
            (figure["p50_ms"], figure["throughput_fps"], str(figure["batch_size"]))
            for figure in system["figures"]
        ]
        for system in systems
    }


def draw(lines: Mapping[str, Sequence[Point]], labels: str) -> Figure:
    """Draw lines by their names; ``labels`` says what the points' labels count."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        latencies, speeds, _ = zip(*points, strict=True)
        axes.plot(latencies, speeds, marker="o", label=name.replace("$", r"\$"))
        for latency, speed, label in points:
            axes.annotate(label, (latency, speed), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel=f"median latency of a call, ms (at the points: {labels})", ylabel="faces a second")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
