"""Passed, failed or blind, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..contract import LENGTH_TOLERANCE

if TYPE_CHECKING:
    from .comparison import EmbedderReport, PairReport
    from .controls import Control

Outcome = Literal["passed", "failed", "blind"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out.

    Attributes:
        outcome: "passed"; "failed"; or "blind", when a fault that the comparison must see was not seen, so
            that whatever else it saw proves nothing.
        reasons: Why it is not "passed".
    """

    outcome: Outcome
    reasons: Sequence[str]


def judge(
    embedders: Sequence[EmbedderReport],
    pairs: Sequence[PairReport],
    controls: Sequence[Control],
    *,
    max_drift_cosine: float,
) -> Verdict:
    """Judge a comparison by its largest drifts; written so that NaN fails."""
    blind = [
        f"{control.fault} makes a drift of {control.drift_max:.2g}, which {max_drift_cosine:g} allows, "
        "so this comparison cannot see it. Give real, coloured crops of several people (--images), or "
        "another --control-model."
        for control in controls
        if control.required and not control.seen
    ]
    failures = list(_failures(embedders, pairs, max_drift_cosine))
    outcome: Outcome = "blind" if blind else "failed" if failures else "passed"
    return Verdict(outcome=outcome, reasons=[*blind, *failures])


def _failures(
    embedders: Sequence[EmbedderReport], pairs: Sequence[PairReport], allowed: float
) -> Iterator[str]:
    for pair in pairs:
        if not pair.agreement.drift_max <= allowed:
            yield (
                f"{pair.other} drifts by {pair.agreement.drift_max:.2g} from {pair.baseline}; expected at "
                f"most {allowed:g}."
            )
    for embedder in embedders:
        if not embedder.drift_between_batches <= allowed:
            yield (
                f"{embedder.name} embeds a crop otherwise with its place in a batch, by "
                f"{embedder.drift_between_batches:.2g}; expected at most {allowed:g}."
            )
        if not (abs(embedder.norm_min - 1) <= LENGTH_TOLERANCE >= abs(embedder.norm_max - 1)):
            yield (
                f"{embedder.name} gives embeddings of length {embedder.norm_min:.4g} to "
                f"{embedder.norm_max:.4g}; expected 1."
            )
