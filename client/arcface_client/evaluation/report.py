"""The report of a comparison: its result, and its forms as JSON and as text; ``page`` makes the HTML."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from ..contract import LENGTH_TOLERANCE
from ..observability.versions import package_versions
from .controls import Control
from .fit import Fit
from .measure import Measured
from .pairs import PairScores
from .samples import Samples
from .scores import FALSE_ACCEPT_RATES, FOLDS, Agreement

FLIP_CROPS: Final = 1000
"""From how many crops at most every two are taken as a pair; the number of pairs grows with the square."""

_PACKAGES: Final = (
    "arcface-triton",
    "numpy",
    "tritonclient",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "insightface",
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a comparison found.

    Attributes:
        outcome: "passed"; "failed"; or "inconclusive" if a control was not seen, so that the comparison
            proves nothing.
        reasons: Why the outcome is not "passed".
    """

    outcome: Literal["passed", "failed", "inconclusive"]
    reasons: Sequence[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything that a comparison found; the first system is the baseline.

    Attributes:
        systems: Each by itself.
        agreements: Each other system against the baseline.
        controls: The negative controls.
        fits: Which pixels for the reference would explain a drift, for each model that drifts.
        warnings: What is odd and does not change the outcome.
        result: What the comparison found.
        samples: The crops.
        batch_size: Crops in a batch.
        max_drift_cosine: The tolerance.
        threshold: Cosine similarity from which two crops count as one person.
        command: The command line.
        created: When, UTC, ISO 8601.
        versions: Of Python, packages and Triton.
        verification: Scores on a verification set; None without one.
    """

    systems: Sequence[Measured]
    agreements: Sequence[Agreement]
    controls: Sequence[Control]
    fits: Sequence[Fit]
    warnings: Sequence[str]
    result: Result
    samples: Samples
    batch_size: int
    max_drift_cosine: float
    threshold: float
    command: str
    created: str
    versions: Mapping[str, str]
    verification: PairScores | None

    @property
    def passed(self) -> bool:
        """Whether the outcome is "passed"."""
        return self.result.outcome == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Give the fields for JSON, which docs/compare.md describes."""
        return {
            "result": asdict(self.result),
            "fits": [asdict(fit) for fit in self.fits],
            "warnings": list(self.warnings),
            "max_drift_cosine": self.max_drift_cosine,
            "samples": {
                "count": len(self.samples.crops),
                "origin": self.samples.origin,
                "skipped": list(self.samples.skipped),
                "batch_size": self.batch_size,
            },
            "backends": [system.to_dict() for system in self.systems],
            "pairs": [asdict(agreement) for agreement in self.agreements],
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

    def tables(self) -> list[Table]:
        """The figures, as the text and the HTML page show them."""
        tables = [self._agreements(), self._systems(), self._controls()]
        return tables if self.verification is None else [*tables, self._scores(self.verification)]

    def to_text(self) -> str:
        """Write the report for a terminal; the outcome is the last line."""
        crops = f"{len(self.samples.crops)} crops ({self.samples.origin}), in batches of {self.batch_size}"
        last = f"{self.result.outcome}: the largest drift may be {self.max_drift_cosine:g}"
        tables = [table.to_text() for table in self.tables()]
        return "\n\n".join([crops, *tables, "\n".join([*self.notes(), *self.result.reasons, last])])

    def notes(self) -> list[str]:
        """What to say besides the result."""
        return [*self.warnings, *map(str, self.fits)]

    def _agreements(self) -> Table:
        columns = ["model", "drift max", "p99", "mean", "cosine min", "p1", "mean", "L2 max", "mean", "flips"]
        rows = []
        for a in self.agreements:
            drifts = [f"{value:.1e}" for value in (a.drift_max, a.drift_p99, a.drift_mean)]
            cosines = [f"{value:.6f}" for value in (a.cosine_min, a.cosine_p1, a.cosine_mean)]
            distances = [f"{value:.1e}" for value in (a.l2_max, a.l2_mean)]
            flips = f"{a.flips.count} of {a.flips.pairs}"
            passed = a.drift_max <= self.max_drift_cosine
            rows.append(Row([a.other, *drifts, *cosines, *distances, flips], passed=passed))
        return Table(
            f"Against {self.systems[0].name}",
            columns,
            rows,
            "Drift is the cosine distance of two embeddings of one crop. A flip is a pair of crops that only "
            f"one of the two models takes for one person, at cosine similarity {self.threshold:g}.",
        )

    def _systems(self) -> Table:
        columns = ["model", "kind", "between batches", "norm"]
        turns = []
        for speed in self.systems[0].speed:
            columns += [f"batch {speed.batch_size}: ms", "faces/s", "speedup"]
            turns.append(f"{speed.turns} of batch {speed.batch_size}")
        rows = []
        for system in self.systems:
            norm = f"{system.norm_min:.4f} to {system.norm_max:.4f}"
            cells = [system.name, system.kind, f"{system.drift_between_batches:.1e}", norm]
            for speed in system.speed:
                cells += [f"{speed.latency_ms:.1f}", f"{speed.faces_per_s:.1f}", f"{speed.speedup:.2f}x"]
            rows.append(Row(cells, passed=system.drift_between_batches <= self.max_drift_cosine))
        return Table(
            "Each model by itself",
            columns,
            rows,
            f"Medians of turns that alternate between the models: {', '.join(turns)}.",
        )

    def _controls(self) -> Table:
        rows = [
            Row([each.perturbation, f"{each.drift_max:.1e}", "yes" if each.seen else "no"], passed=each.seen)
            for each in self.controls
        ]
        return Table(
            "Negative controls",
            ["perturbation of the baseline", "drift max", "seen"],
            rows,
            "A comparison that does not see them proves nothing.",
        )

    def _scores(self, scores: PairScores) -> Table:
        same, path = scores.pair_file.same, scores.pair_file.path
        rates = [f"TAR at FAR {rate:g}" for rate in FALSE_ACCEPT_RATES]
        flips = ["-", *(str(own.count) for own in scores.flips)]
        rows = []
        for system, own, count in zip(self.systems, scores.verification, flips, strict=True):
            spread = "" if own.accuracy_std is None else f" ± {own.accuracy_std:.2%}"
            threshold = "-" if own.threshold is None else f"{own.threshold:.3f}"
            tar = map(_percent, own.tar_at_far.values())
            rows.append(Row([system.name, _percent(own.accuracy_mean) + spread, threshold, *tar, count]))
        mirrored = " Each embedding is the crop's plus its mirror image's." if scores.mirrored else ""
        return Table(
            f"{path}: {len(same)} pairs, {same.sum()} of one person",
            ["model", "accuracy", "threshold", *rates, "flips"],
            rows,
            f"Accuracy over {FOLDS} folds, each at the best threshold of the others.{mirrored}",
        )


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells, and whether what it shows is within the tolerance."""

    cells: Sequence[str]
    passed: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the report: its title, the names of its columns, its rows, and what they mean."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str

    def to_text(self) -> str:
        """Align the cells: the first column to the left, the others to the right."""
        rows = [self.columns, *(row.cells for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title]
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join([*lines, f"({self.note})"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def result_of(
    systems: Sequence[Measured],
    agreements: Sequence[Agreement],
    controls: Sequence[Control],
    max_drift_cosine: float,
) -> Result:
    """Tell whether the largest drifts are within the tolerance; NaN is not."""
    unseen = [
        f"{control.perturbation} causes a drift of {control.drift_max:.2g}, which is within the tolerance "
        f"{max_drift_cosine:g}, so these crops cannot show it. Give real colour crops of several people "
        "(--images), or another --control-model."
        for control in controls
        if not control.seen
    ]
    failures = list(_failures(systems, agreements, max_drift_cosine))
    outcome: Literal["passed", "failed", "inconclusive"]
    outcome = "inconclusive" if unseen else "failed" if failures else "passed"
    return Result(outcome=outcome, reasons=[*unseen, *failures])


def _failures(systems: Sequence[Measured], agreements: Sequence[Agreement], allowed: float) -> Iterator[str]:
    for a in agreements:
        if not a.drift_max <= allowed:
            yield f"{a.other} drifts by {a.drift_max:.2g} from {a.baseline}; expected at most {allowed:g}."
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
    system = {"python": platform.python_version(), "platform": platform.platform()}
    return system | package_versions(_PACKAGES) | ({} if server is None else {"triton": server})
