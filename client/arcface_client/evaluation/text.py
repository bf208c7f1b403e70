"""A report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .labelled_pairs import LabelledPairs
from .report import Report
from .verification import FALSE_ACCEPT_RATES


def to_text(report: Report) -> str:
    """Write a report as tables; the verdict is the last line."""
    sections = [_pairs(report), _embedders(report), _controls(report)]
    if report.verification is not None:
        sections.append(_verification(report, report.verification))
    sections.append(_verdict(report))
    return "\n\n".join("\n".join(section) for section in sections)


def percent(share: float | None) -> str:
    """A share as a person reads it; a dash where it is not known."""
    return "-" if share is None else f"{share:.2%}"


def _pairs(report: Report) -> Iterator[str]:
    crops, pairs = len(report.samples.crops), report.comparison.pairs
    yield f"{crops} crops ({report.samples.origin}), in batches of {report.batch_size}"
    header = [
        f"against {pairs[0].baseline}",
        "drift max",
        "p99",
        "mean",
        "cosine min",
        "p1",
        "L2 max",
        "flips",
    ]
    rows = [
        [
            pair.other,
            f"{pair.agreement.drift_max:.1e}",
            f"{pair.agreement.drift_p99:.1e}",
            f"{pair.agreement.drift_mean:.1e}",
            f"{pair.agreement.cosine_min:.6f}",
            f"{pair.agreement.cosine_p1:.6f}",
            f"{pair.agreement.l2_max:.1e}",
            f"{pair.flips.count} of {pair.flips.pairs}",
        ]
        for pair in pairs
    ]
    yield from _table([header, *rows])
    yield "(drift is 1 - cosine similarity of two embeddings of one crop; a flip is a pair of crops that only"
    yield f" one of the two takes for one person, from a cosine similarity of {report.threshold:g})"


def _embedders(report: Report) -> Iterator[str]:
    embedders = report.comparison.embedders
    header = ["", "between batches", "norm"]
    for speed in embedders[0].speed:
        header += [f"batch {speed.batch_size}: ms", "faces/s", "speedup"]
    rows = []
    for embedder in embedders:
        row = [
            embedder.name,
            f"{embedder.drift_between_batches:.1e}",
            f"{embedder.norm_min:.4f} to {embedder.norm_max:.4f}",
        ]
        for speed in embedder.speed:
            row += [f"{speed.latency_ms:.1f}", f"{speed.faces_per_s:.1f}", f"{speed.speedup:.2f}x"]
        rows.append(row)
    yield from _table([header, *rows])


def _controls(report: Report) -> Iterator[str]:
    header = ["control", "drift max", "seen"]
    rows = [
        [
            control.fault,
            f"{control.drift_max:.1e}",
            ("yes" if control.seen else "NO") if control.required else "not required",
        ]
        for control in report.comparison.controls
    ]
    yield from _table([header, *rows])


def _verification(report: Report, found: LabelledPairs) -> Iterator[str]:
    yield f"{found.path}: {found.pairs} pairs, {found.same} of one person"
    header = ["", "accuracy", "threshold", *(f"TAR at FAR {rate:g}" for rate in FALSE_ACCEPT_RATES), "flips"]
    flips = ["-", *(str(own.count) for own in found.flips)]
    rows = [
        [
            embedder.name,
            percent(own.accuracy_mean) + ("" if own.accuracy_std is None else f" +- {own.accuracy_std:.2%}"),
            "-" if own.threshold is None else f"{own.threshold:.3f}",
            *(percent(rate) for rate in own.tar_at_far.values()),
            flipped,
        ]
        for embedder, own, flipped in zip(report.comparison.embedders, found.verification, flips, strict=True)
    ]
    yield from _table([header, *rows])


def _verdict(report: Report) -> Iterator[str]:
    verdict = report.comparison.verdict
    yield from verdict.reasons
    yield f"{verdict.outcome}: the largest drift may be {report.max_drift_cosine:g}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
