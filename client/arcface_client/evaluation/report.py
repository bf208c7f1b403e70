"""The report of a comparison: its result, and its forms as JSON and as text; ``page`` makes the HTML."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

from ..contract import LENGTH_TOLERANCE, Embeddings
from .controls import Control
from .measure import Speed
from .pairs import PairScores
from .samples import Samples
from .scores import FALSE_ACCEPT_RATES, Agreement, Flips

FLIP_CROPS: Final = 1000
"""From how many crops at most every two are taken as a pair; the number of pairs grows with the square."""

_PACKAGES: Final = ("arcface-triton", "numpy", "tritonclient", "onnxruntime", "insightface")


@dataclass(frozen=True, kw_only=True)
class SystemReport:
    """What was measured of one system.

    Attributes:
        name: Its name.
        kind: "served", "in process" or "reference".
        where: The server's address, or the file.
        norm_min: Least length of an embedding.
        norm_max: Greatest length.
        drift_between_batches: Largest drift of a crop from itself: alone, and at other places in batches.
        speed: By batch size.
    """

    name: str
    kind: str
    where: str
    norm_min: float
    norm_max: float
    drift_between_batches: float
    speed: Sequence[Speed]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One system against the baseline.

    Attributes:
        baseline: Name of the baseline.
        other: Name of the other system.
        agreement: Crop by crop.
        flips: Pairs of crops that change sides of the threshold.
    """

    baseline: str
    other: str
    agreement: Agreement
    flips: Flips


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a comparison found.

    Attributes:
        outcome: "passed"; "failed"; or "inconclusive" if a required control was not seen, so that the
            comparison proves nothing.
        reasons: Why the outcome is not "passed".
    """

    outcome: Literal["passed", "failed", "inconclusive"]
    reasons: Sequence[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything that a comparison found; the first system is the baseline.

    Attributes:
        systems: Each by itself.
        differences: Each other system against the baseline.
        controls: The negative controls.
        result: What the comparison found.
        samples: The crops.
        embeddings: Of the crops, float32 [N, 512], one array for each system.
        batch_size: Crops in a batch.
        max_drift_cosine: The tolerance.
        threshold: Cosine similarity from which two crops count as one person.
        command: The command line.
        created: When, UTC, ISO 8601.
        versions: Of Python, packages and Triton.
        verification: Scores on a verification set; None without one.
    """

    systems: Sequence[SystemReport]
    differences: Sequence[Difference]
    controls: Sequence[Control]
    result: Result
    samples: Samples
    embeddings: Sequence[Embeddings]
    batch_size: int
    max_drift_cosine: float
    threshold: float
    command: str
    created: str
    versions: Mapping[str, str]
    verification: PairScores | None = None

    @property
    def passed(self) -> bool:
        """Whether the outcome is "passed"."""
        return self.result.outcome == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Give the fields for JSON, which docs/compare.md describes."""
        return {
            "result": asdict(self.result),
            "max_drift_cosine": self.max_drift_cosine,
            "samples": {
                "count": len(self.samples.crops),
                "origin": self.samples.origin,
                "skipped": list(self.samples.skipped),
                "batch_size": self.batch_size,
            },
            "backends": [asdict(system) for system in self.systems],
            "pairs": [
                {"baseline": one.baseline, "other": one.other, **asdict(one.agreement)}
                | {"flips": asdict(one.flips)}
                for one in self.differences
            ],
            "controls": [asdict(control) for control in self.controls],
            "verification": None if self.verification is None else self._verification(self.verification),
            "versions": dict(self.versions),
            "command": self.command,
            "created": self.created,
        }

    def _verification(self, scores: PairScores) -> dict[str, Any]:
        names = [system.name for system in self.systems]
        return {
            "path": str(scores.pair_file.path),
            "pairs": len(scores.pair_file.same),
            "same": int(scores.pair_file.same.sum()),
            "mirrored": scores.mirrored,
            "backends": [
                {"name": name, **asdict(own)} for name, own in zip(names, scores.verification, strict=True)
            ],
            "flips": [
                {"baseline": names[0], "other": name, **asdict(own)}
                for name, own in zip(names[1:], scores.flips, strict=True)
            ],
        }

    def to_text(self) -> str:
        """Write the report as tables for a terminal; the outcome is the last line."""
        sections = [self._differences_text(), self._systems_text(), self._controls_text()]
        if self.verification is not None:
            sections.append(self._verification_text(self.verification))
        last = f"{self.result.outcome}: the largest drift may be {self.max_drift_cosine:g}"
        sections.append([*self.result.reasons, last])
        return "\n\n".join("\n".join(lines) for lines in sections)

    def _differences_text(self) -> list[str]:
        against = f"against {self.systems[0].name}"
        rows = [[against, "drift max", "p99", "mean", "cosine min", "p1", "L2 max", "flips"]]
        for one in self.differences:
            a = one.agreement
            drifts = [f"{value:.1e}" for value in (a.drift_max, a.drift_p99, a.drift_mean)]
            cosines = [f"{a.cosine_min:.6f}", f"{a.cosine_p1:.6f}", f"{a.l2_max:.1e}"]
            rows.append([one.other, *drifts, *cosines, f"{one.flips.count} of {one.flips.pairs}"])
        return [
            f"{len(self.samples.crops)} crops ({self.samples.origin}), in batches of {self.batch_size}",
            *_table(rows),
            "(Drift is the cosine distance of two embeddings of one crop. A flip is a pair of crops that",
            f" only one of the two systems takes for one person, at cosine similarity {self.threshold:g}.)",
        ]

    def _systems_text(self) -> list[str]:
        header = ["", "between batches", "norm"]
        for speed in self.systems[0].speed:
            header += [f"batch {speed.batch_size}: ms", "faces/s", "speedup"]
        rows = [header]
        for system in self.systems:
            norm = f"{system.norm_min:.4f} to {system.norm_max:.4f}"
            row = [system.name, f"{system.drift_between_batches:.1e}", norm]
            for speed in system.speed:
                row += [f"{speed.latency_ms:.1f}", f"{speed.faces_per_s:.1f}", f"{speed.speedup:.2f}x"]
            rows.append(row)
        return _table(rows)

    def _controls_text(self) -> list[str]:
        rows = [["negative control", "drift max", "seen"]]
        for control in self.controls:
            seen = ("yes" if control.seen else "NO") if control.required else "not required"
            rows.append([control.perturbation, f"{control.drift_max:.1e}", seen])
        return _table(rows)

    def _verification_text(self, scores: PairScores) -> list[str]:
        same, path = scores.pair_file.same, scores.pair_file.path
        rates = [f"TAR at FAR {rate:g}" for rate in FALSE_ACCEPT_RATES]
        rows = [["", "accuracy", "threshold", *rates, "flips"]]
        flips = ["-", *(str(own.count) for own in scores.flips)]
        for system, own, count in zip(self.systems, scores.verification, flips, strict=True):
            spread = "" if own.accuracy_std is None else f" +- {own.accuracy_std:.2%}"
            threshold = "-" if own.threshold is None else f"{own.threshold:.3f}"
            tar = map(percent, own.tar_at_far.values())
            rows.append([system.name, percent(own.accuracy_mean) + spread, threshold, *tar, count])
        return [f"{path}: {len(same)} pairs, {same.sum()} of one person", *_table(rows)]


def percent(share: float | None) -> str:
    """Write a share as a percentage; a dash if it is unknown."""
    return "-" if share is None else f"{share:.2%}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align a table's cells: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def result_of(
    systems: Sequence[SystemReport],
    differences: Sequence[Difference],
    controls: Sequence[Control],
    max_drift_cosine: float,
) -> Result:
    """Tell whether the largest drifts are within the tolerance; NaN is not."""
    unseen = [
        f"{control.perturbation} causes a drift of {control.drift_max:.2g}, which is within the tolerance "
        f"{max_drift_cosine:g}, so these crops cannot show it. Give real colour crops of several people "
        "(--images), or another --control-model."
        for control in controls
        if control.required and not control.seen
    ]
    failures = list(_failures(systems, differences, max_drift_cosine))
    outcome: Literal["passed", "failed", "inconclusive"]
    outcome = "inconclusive" if unseen else "failed" if failures else "passed"
    return Result(outcome=outcome, reasons=[*unseen, *failures])


def _failures(
    systems: Sequence[SystemReport], differences: Sequence[Difference], allowed: float
) -> Iterator[str]:
    for one in differences:
        if not one.agreement.drift_max <= allowed:
            yield (
                f"{one.other} drifts by {one.agreement.drift_max:.2g} from {one.baseline}; expected at most "
                f"{allowed:g}."
            )
    for system in systems:
        if not system.drift_between_batches <= allowed:
            yield (
                f"{system.name} gives a crop an embedding that depends on its place in a batch; it drifts by "
                f"{system.drift_between_batches:.2g}, expected at most {allowed:g}."
            )
        if not (abs(system.norm_min - 1) <= LENGTH_TOLERANCE >= abs(system.norm_max - 1)):
            yield (
                f"{system.name} gives embeddings of length {system.norm_min:.4g} to {system.norm_max:.4g}; "
                "expected 1."
            )


def versions(server: str | None) -> dict[str, str]:
    """Collect the versions of Python, of packages, and of Triton; None without a server."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found if server is None else found | {"triton": server}
