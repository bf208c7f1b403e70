"""How figures look, and throughput against latency with a line for each system."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InputError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, str]
"""Median latency in ms, faces a second, and a label."""

_STYLE: Final[Any] = {
    "axes.edgecolor": "#94a3b8",
    "axes.grid": True,
    "axes.labelcolor": "#334155",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": "#e2e8f0",
    "svg.hashsalt": "arcface",  # the same figure gives the same text
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "text.color": "#0f172a",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
}

_LONGEST_NAME: Final = 32
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


def draw(lines: Mapping[str, Sequence[Point]], labels: str) -> Figure:
    """Draw lines by their names; ``labels`` says what the points' labels count."""
    x_label = f"median latency of a call, ms (at the points: {labels})"
    figure, axes = new_figure(x_label, "faces a second", width=8, height=5)
    for name, points in lines.items():
        latencies, speeds, _ = zip(*points, strict=True)
        axes.plot(latencies, speeds, marker="o", label=plain(name))
        for latency, speed, label in points:
            axes.annotate(label, (latency, speed), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def new_figure(x_label: str, y_label: str, *, width: float = 4.8, height: float = 3.4) -> tuple[Figure, Any]:
    """Begin a figure: it and its axes; width and height are inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def plain(name: str) -> str:
    """Shorten a long name at its beginning, and escape dollars, which begin a formula in matplotlib."""
    short = name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME:]
    return short.replace("$", r"\$")


def to_svg(figure: Figure) -> str:
    """Write a figure as an SVG element, to be put into a page."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=150, transparent=True, metadata=nothing)
    return file.getvalue()[file.getvalue().index("<svg") :]
