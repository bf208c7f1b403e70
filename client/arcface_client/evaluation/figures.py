"""The report's figures: data in, matplotlib figures out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure

from .comparison import EmbedderReport
from .statistics import Values, flipped

_BLUE: Final = "#2563eb"
_RED: Final = "#dc2626"
_GREY: Final = "#64748b"
_BARS: Final = ("#2563eb", "#93b4f5")

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
    "svg.fonttype": "none",  # text stays text: the page's own font, which can be searched
    "text.color": "#0f172a",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
}

_LONGEST_NAME: Final = 32

LEAST_DRIFT: Final = 1e-15
"""The rounding of float32 makes about so much, and a logarithm needs an end."""


def drift_histogram(drift: Values, allowed: float) -> Figure:
    """How many crops drift how far, on a logarithmic axis.

    Args:
        drift: Of each crop, float64 [N].
        allowed: The largest that passes.
    """
    shown = np.maximum(drift, LEAST_DRIFT)
    low, high = min(shown.min(), allowed) / 10, max(shown.max(), allowed) * 10
    figure, axes = _figure("Drift of each crop, 1 - cosine similarity", "crops")
    bins = np.geomspace(low, high, 61)
    for kept, colour in ((shown <= allowed, _BLUE), (shown > allowed, _RED)):
        axes.hist(shown[kept], bins, color=colour)
    axes.set_xscale("log")
    axes.margins(y=0.2)  # room for the legend
    _allowed(axes.axvline, allowed)
    axes.legend(loc="upper left", frameon=False)
    return figure


def drift_scatter(drift: Values, worst: Sequence[int], allowed: float) -> Figure:
    """Every crop's drift, with the worst ones numbered.

    Args:
        drift: Of each crop, float64 [N].
        worst: Indices of the worst crops, worst first; each gets its rank as its number.
        allowed: The largest that passes.
    """
    shown = np.maximum(drift, LEAST_DRIFT)
    figure, axes = _figure("crop", "drift")
    axes.scatter(np.arange(len(shown)), shown, s=14, color=[_RED if d > allowed else _BLUE for d in shown])
    for rank, index in enumerate(worst, start=1):
        axes.annotate(str(rank), (index, shown[index]), xytext=(4, 3), textcoords="offset points", fontsize=9)
    axes.set_yscale("log")
    _allowed(axes.axhline, allowed)
    axes.set_ylim(min(shown.min(), allowed) / 3, max(shown.max(), allowed) * 6)
    axes.legend(loc="upper right", frameon=False)
    return figure


def similarity_scatter(
    left: Values, right: Values, names: tuple[str, str], threshold: float, same: npt.NDArray[np.bool_] | None
) -> Figure:
    """Similarity of each pair by one embedder against that by the other, flips in red.

    Args:
        left: Of the baseline, float64 [pairs].
        right: Of the other.
        names: Theirs.
        threshold: From which a pair counts as one person.
        same: Whether each pair is one person, where it is known.
    """
    figure, axes = _figure(f"similarity by {_plain(names[0])}", f"by {_plain(names[1])}")
    changed = flipped(left, right, threshold)
    known = [("pairs of crops", np.ones(len(left), bool), _BLUE)]
    if same is not None:
        known = [("one person", same, _BLUE), ("two persons", ~same, _GREY)]
    # Points as an image: thousands of them as shapes would make the page heavy.
    for label, which, colour in known:
        kept = which & ~changed
        axes.scatter(left[kept], right[kept], s=6, color=colour, alpha=0.5, label=label, rasterized=True)
    axes.scatter(left[changed], right[changed], s=22, color=_RED, label=f"flips ({changed.sum()})")
    axes.axvline(threshold, color=_GREY, linewidth=1, linestyle="--")
    axes.axhline(threshold, color=_GREY, linewidth=1, linestyle="--")
    axes.legend(loc="upper left", frameon=False)
    return figure


def speed_bars(embedders: Sequence[EmbedderReport]) -> Figure:
    """Crops a second of each embedder, by batch size, with the speedup over the baseline."""
    sizes = [speed.batch_size for speed in embedders[0].speed]
    figure, axes = _figure("faces a second", "", width=8, height=0.9 + 0.5 * len(embedders))
    height = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        speeds = [embedder.speed[number] for embedder in embedders]
        places = np.arange(len(embedders)) + (number - (len(sizes) - 1) / 2) * height
        widths = [speed.faces_per_s for speed in speeds]
        bars = axes.barh(places, widths, height, label=f"batch {size}", color=_BARS[number])
        labels = [f"{speed.faces_per_s:,.1f}  ({speed.speedup:.2f}x)" for speed in speeds]
        axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_yticks(np.arange(len(embedders)), [_plain(embedder.name) for embedder in embedders])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def to_svg(figure: Figure) -> str:
    """Write a figure as an ``<svg>`` element."""
    with rc_context(_STYLE):
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=150, transparent=True, metadata=nothing)
    return file.getvalue()[file.getvalue().index("<svg") :]


def _figure(x_label: str, y_label: str, *, width: float = 4.8, height: float = 3.4) -> tuple[Figure, Any]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def _allowed(line: Any, allowed: float) -> None:
    line(allowed, color=_RED, linewidth=1.2, linestyle="--", label=f"allowed: {allowed:g}")


def _plain(name: str) -> str:
    """A name as it is, but for the beginning of a long one: to matplotlib, dollars begin a formula."""
    short = name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME:]
    return short.replace("$", r"\$")
