"""A report as one HTML page that stands alone: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..contract import Crops
from ..errors import require
from ..gallery import Gallery
from .measure import Measured
from .neighbours import Query
from .plot import new_figure, plain, to_svg
from .report import FLIP_CROPS, Report
from .scores import Same, Values, drifts, flipped, similarities_of_all_pairs

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

_BLUE: Final = "#2563eb"
_RED: Final = "#dc2626"
_GREY: Final = "#64748b"
_BARS: Final = ("#2563eb", "#93b4f5")

_WORST: Final = 8

_LEAST_DRIFT: Final = 1e-15
"""About the rounding of float32; a logarithmic axis cannot show 0."""


def check_extra() -> None:
    """Check that the packages for a page are installed.

    Raises:
        MissingExtraError: One of them is not.
    """
    for module in ("jinja2", "matplotlib", "PIL"):
        require(module, extra="report", purpose="The HTML report")


def to_html(report: Report) -> str:
    """Write a report as HTML; see ``check_extra`` for what it needs."""
    return (
        environment()
        .get_template("page.html")
        .render(
            report=report,
            speed=_speed_bars(report.systems),
            details=[_details(report, number) for number in range(1, len(report.systems))],
        )
    )


def matches_to_html(gallery: Gallery, queries: Sequence[Query], crops: Mapping[str, Crops]) -> str:
    """Show the nearest faces of a gallery; see ``check_extra`` for what it needs.

    Args:
        gallery: Where they were found.
        queries: What was looked for, and the matches.
        crops: The matches' crops by their ids, uint8 [112, 112, 3], BGR; a match without one has no picture.
    """
    return environment().get_template("search.html").render(gallery=gallery, queries=queries, crops=crops)


def environment() -> jinja2.Environment:
    """What makes pages: templates that may include "style.css", and filters that draw figures and crops."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("arcface_client.evaluation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda figure: Markup(to_svg(figure))  # all other text is escaped
    environment.filters["png"] = _png
    return environment


def _details(report: Report, number: int) -> Mapping[str, Any]:
    """What the page shows of a system against the baseline, by the system's number."""
    agreement, allowed = report.agreements[number - 1], report.max_drift_cosine
    ours = [report.systems[index].embeddings for index in (0, number)]
    drift = drifts(*ours)
    # Below the least drift that a figure shows, the order is that of rounding errors.
    worst = [index for index in np.argsort(-drift)[:_WORST].tolist() if drift[index] > _LEAST_DRIFT]
    names = (agreement.baseline, agreement.other)
    similar = [similarities_of_all_pairs(embeddings[:FLIP_CROPS]) for embeddings in ours]
    scatters = [
        (
            f"Every two of the crops: {agreement.flips.count} of {agreement.flips.pairs} pairs flip",
            _similarity_scatter(similar[0], similar[1], names, report.threshold, None),
        )
    ]
    scores = report.verification
    if scores is not None:
        flips, file = scores.flips[number - 1], scores.pair_file
        left, right = scores.similarities[0], scores.similarities[number]
        title = f"{file.path.name}: {flips.count} of {flips.pairs} pairs flip"
        scatters.append((title, _similarity_scatter(left, right, names, report.threshold, file.same)))
    samples = report.samples
    return {
        "agreement": agreement,
        "histogram": _drift_histogram(drift, allowed),
        "scatter": _drift_scatter(drift, worst, allowed),
        "similarities": scatters,
        "worst": [
            {"crop": samples.crops[index], "name": samples.names[index], "drift": float(drift[index])}
            for index in worst
        ],
    }


def _drift_histogram(drift: Values, allowed: float) -> Figure:
    """How many crops drift how far, on a logarithmic axis."""
    shown = np.maximum(drift, _LEAST_DRIFT)
    low, high = min(shown.min(), allowed) / 10, max(shown.max(), allowed) * 10
    figure, axes = new_figure("Drift of each crop (cosine distance)", "crops")
    bins = np.geomspace(low, high, 61)
    for kept, colour in ((shown <= allowed, _BLUE), (shown > allowed, _RED)):
        axes.hist(shown[kept], bins, color=colour)
    axes.set_xscale("log")
    axes.margins(y=0.2)  # room for the legend
    _draw_allowed(axes.axvline, allowed)
    axes.legend(loc="upper left", frameon=False)
    return figure


def _drift_scatter(drift: Values, worst: Sequence[int], allowed: float) -> Figure:
    """Every crop's drift; the worst crops have their rank beside them."""
    shown = np.maximum(drift, _LEAST_DRIFT)
    figure, axes = new_figure("crop", "drift")
    axes.scatter(np.arange(len(shown)), shown, s=14, color=[_RED if d > allowed else _BLUE for d in shown])
    for rank, index in enumerate(worst, start=1):
        axes.annotate(str(rank), (index, shown[index]), xytext=(4, 3), textcoords="offset points", fontsize=9)
    axes.set_yscale("log")
    _draw_allowed(axes.axhline, allowed)
    axes.set_ylim(min(shown.min(), allowed) / 3, max(shown.max(), allowed) * 6)
    axes.legend(loc="upper right", frameon=False)
    return figure


def _similarity_scatter(
    left: Values, right: Values, names: tuple[str, str], threshold: float, same: Same | None
) -> Figure:
    """Similarity of each pair by the baseline against that by another system, flips in red."""
    figure, axes = new_figure(f"similarity by {plain(names[0])}", f"by {plain(names[1])}")
    changed = flipped(left, right, threshold)
    known = [("pairs of crops", np.ones(len(left), bool), _BLUE)]
    if same is not None:
        known = [("one person", same, _BLUE), ("two persons", ~same, _GREY)]
    # Points become an image, because thousands of shapes would make the page heavy.
    for label, which, colour in known:
        kept = which & ~changed
        axes.scatter(left[kept], right[kept], s=6, color=colour, alpha=0.5, label=label, rasterized=True)
    axes.scatter(left[changed], right[changed], s=22, color=_RED, label=f"flips ({changed.sum()})")
    axes.axvline(threshold, color=_GREY, linewidth=1, linestyle="--")
    axes.axhline(threshold, color=_GREY, linewidth=1, linestyle="--")
    axes.legend(loc="upper left", frameon=False)
    return figure


def _speed_bars(systems: Sequence[Measured]) -> Figure:
    """Crops a second of each system, by batch size, with the speedup over the baseline."""
    sizes = [speed.batch_size for speed in systems[0].speed]
    figure, axes = new_figure("faces a second", "", width=8, height=0.9 + 0.5 * len(systems))
    height = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        speeds = [system.speed[number] for system in systems]
        places = np.arange(len(systems)) + (number - (len(sizes) - 1) / 2) * height
        widths = [speed.faces_per_s for speed in speeds]
        bars = axes.barh(places, widths, height, label=f"batch {size}", color=_BARS[number])
        labels = [f"{speed.faces_per_s:,.1f}  ({speed.speedup:.2f}x)" for speed in speeds]
        axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_yticks(np.arange(len(systems)), [plain(system.name) for system in systems])
    axes.invert_yaxis()
    axes.margins(x=0.3)  # room for the labels
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _draw_allowed(line: Any, allowed: float) -> None:
    line(allowed, color=_RED, linewidth=1.2, linestyle="--", label=f"allowed: {allowed:g}")


def _png(crop: Crops) -> str:
    """Write a crop as a data URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(crop[..., ::-1])).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
