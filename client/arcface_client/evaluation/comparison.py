"""A comparison: what is measured of each embedder, of each against the baseline, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..contract import Crops, Progress
from .controls import Control, run_controls
from .embedders import Embedder
from .measuring import Runs, Speed, measure, speeds
from .statistics import Agreement, Flips, agreement, flips, norms, similarities_of_all_pairs
from .verdict import Verdict, judge

FLIP_CROPS: Final = 1000
"""Of how many crops at most every two are taken for a pair; their number grows with the square."""


@dataclass(frozen=True, kw_only=True)
class EmbedderReport:
    """What was measured of one embedder.

    Attributes:
        name: What it is called.
        kind: "served", "in process" or "reference".
        where: The server's address, or the file.
        norm_min: Least length of an embedding.
        norm_max: Greatest length.
        drift_between_batches: Largest drift of a crop between its places in batches, and alone.
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
class PairReport:
    """One embedder against the baseline.

    Attributes:
        baseline: Name of the baseline.
        other: Name of the other.
        agreement: Crop by crop.
        flips: Pairs of the crops that change sides of the threshold.
    """

    baseline: str
    other: str
    agreement: Agreement
    flips: Flips


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that a comparison found; the first embedder is the baseline.

    Attributes:
        embedders: Each by itself.
        pairs: Each other one against the baseline.
        controls: Faults that must be seen.
        verdict: What comes of it.
        runs: The embeddings themselves, in the order of ``embedders``.
    """

    embedders: Sequence[EmbedderReport]
    pairs: Sequence[PairReport]
    controls: Sequence[Control]
    verdict: Verdict
    runs: Sequence[Runs]


def compare(
    embedders: Sequence[Embedder],
    crops: Crops,
    *,
    batch_size: int,
    max_drift_cosine: float,
    threshold: float,
    other_models: Sequence[Embedder] = (),
    progress: Progress = lambda stage, done: None,
) -> Comparison:
    """Compare embedders with the first of them.

    Args:
        embedders: Two or more.
        crops: uint8 [N, 112, 112, 3], N at least 2.
        batch_size: Crops in a batch; fewer when there are not so many.
        max_drift_cosine: The largest drift that passes.
        threshold: Cosine similarity from which two crops count as one person.
        other_models: Models of another source, as controls.
        progress: Is called for each batch.

    Raises:
        ArcFaceError: One of them failed.
    """
    size = min(batch_size, len(crops))
    runs = measure(embedders, crops, size, progress)
    reports = [_report(embedder, own, runs[0]) for embedder, own in zip(embedders, runs, strict=True)]
    similar = [similarities_of_all_pairs(own.embeddings[:FLIP_CROPS]) for own in runs]
    pairs = [
        PairReport(
            baseline=embedders[0].name,
            other=embedders[index].name,
            agreement=agreement(runs[0].embeddings, runs[index].embeddings),
            flips=flips(similar[0], similar[index], threshold),
        )
        for index in range(1, len(embedders))
    ]
    controls = run_controls(
        embedders[0], other_models, crops, batch_size=size, max_drift_cosine=max_drift_cosine
    )
    return Comparison(
        embedders=reports,
        pairs=pairs,
        controls=controls,
        verdict=judge(reports, pairs, controls, max_drift_cosine=max_drift_cosine),
        runs=runs,
    )


def _report(embedder: Embedder, runs: Runs, baseline: Runs) -> EmbedderReport:
    lengths = norms(runs.embeddings)
    return EmbedderReport(
        name=embedder.name,
        kind=embedder.kind,
        where=embedder.where,
        norm_min=float(lengths.min()),
        norm_max=float(lengths.max()),
        drift_between_batches=runs.drift_between_batches,
        speed=speeds(runs, baseline),
    )
