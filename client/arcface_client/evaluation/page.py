"""A report as one HTML page that stands alone: no network, no scripts, pictures within."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..contract import Crops
from ..errors import require
from .comparison import FLIP_CROPS, PairReport
from .report import Report
from .statistics import direction_drifts, similarities_of_all_pairs
from .text import percent
from .verification import FALSE_ACCEPT_RATES

_WORST: Final = 8


def to_html(report: Report) -> str:
    """Write a report as HTML.

    Raises:
        MissingExtraError: matplotlib, Jinja or Pillow is not installed.
    """
    check_extra()
    import jinja2
    from markupsafe import Markup

    from .figures import speed_bars, to_svg

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("arcface_client.evaluation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Everything else is escaped.
    environment.filters["svg"] = lambda figure: Markup(to_svg(figure))
    environment.filters["percent"] = percent
    return environment.get_template("page.html").render(
        report=report,
        comparison=report.comparison,
        verification=report.verification,
        rates=FALSE_ACCEPT_RATES,
        speed=speed_bars(report.comparison.embedders),
        pairs=[_pair(report, number, pair) for number, pair in enumerate(report.comparison.pairs, start=1)],
    )


def check_extra() -> None:
    """Check that what a page needs is installed.

    Raises:
        MissingExtraError: It is not.
    """
    for module in ("jinja2", "matplotlib", "PIL"):
        require(module, extra="report", purpose="The HTML report")


def _pair(report: Report, number: int, pair: PairReport) -> Mapping[str, Any]:
    """What the page shows of a pair; ``number`` is the other embedder's."""
    from . import figures

    runs, allowed = report.comparison.runs, report.max_drift_cosine
    drift = direction_drifts(runs[0].embeddings, runs[number].embeddings)
    # Below the least drift that a figure shows, the order is that of rounding errors.
    worst = [index for index in np.argsort(-drift)[:_WORST].tolist() if drift[index] > figures.LEAST_DRIFT]
    names = (pair.baseline, pair.other)
    similar = [similarities_of_all_pairs(runs[index].embeddings[:FLIP_CROPS]) for index in (0, number)]
    scatters = [
        (
            f"Every two of the crops: {pair.flips.count} of {pair.flips.pairs} pairs flip",
            figures.similarity_scatter(similar[0], similar[1], names, report.threshold, None),
        )
    ]
    labelled = report.verification
    if labelled is not None:
        flips = labelled.flips[number - 1]
        scatters.append(
            (
                f"{labelled.path.name}: {flips.count} of {flips.pairs} pairs flip",
                figures.similarity_scatter(
                    labelled.similarities[0],
                    labelled.similarities[number],
                    names,
                    report.threshold,
                    labelled.labels,
                ),
            )
        )
    return {
        "report": pair,
        "histogram": figures.drift_histogram(drift, allowed),
        "scatter": figures.drift_scatter(drift, worst, allowed),
        "similarities": scatters,
        "worst": _thumbnails(report, worst, drift.tolist()),
    }


def _thumbnails(report: Report, worst: Sequence[int], drift: Sequence[float]) -> list[Mapping[str, Any]]:
    samples = report.samples
    return [
        {"png": _png(samples.crops[index]), "name": samples.names[index], "drift": drift[index]}
        for index in worst
    ]


def _png(crop: Crops) -> str:
    """A crop as the address of a picture that holds it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(crop[..., ::-1])).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
