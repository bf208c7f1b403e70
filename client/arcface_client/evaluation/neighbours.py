"""Nearest neighbours by exact cosine similarity, and how they change from one gallery to another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..contract import Crops, Embeddings, Progress, no_progress
from ..errors import InputError
from ..gallery import Gallery, vectors
from .scores import Flips, Values, flips, similarities_of_all_pairs


@dataclass(frozen=True)
class Match:
    """A row of a gallery that is near a query: its id, and the cosine similarity."""

    id: str
    similarity: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """A face that was looked for.

    Attributes:
        name: The image's name.
        crop: uint8 [112, 112, 3], BGR.
        matches: The nearest rows of the gallery, the most similar first.
    """

    name: str
    crop: Crops
    matches: Sequence[Match]


def nearest(
    gallery: Gallery, queries: Embeddings, k: int, progress: Progress = no_progress
) -> list[list[Match]]:
    """Find the nearest rows of a gallery to each query, by comparing with every row.

    Memory holds one batch of the gallery at a time.

    Args:
        gallery: Where to look; its failed rows are passed over.
        queries: float32 [Q, D], rows of length one.
        k: How many to find; fewer if the gallery has fewer embeddings.
        progress: Called for each batch.

    Returns:
        For each query its matches, the most similar first.

    Raises:
        InputError: The gallery cannot be read, or has embeddings of another width.
    """
    if queries.shape[1] != gallery.info.dim:
        raise InputError(
            f"The queries have {queries.shape[1]} numbers, the embeddings of {gallery.path} "
            f"{gallery.info.dim}; embed the queries with the gallery's model."
        )
    best = np.empty((len(queries), 0), np.float32)
    ids = np.empty(best.shape, object)
    done = 0
    for batch in gallery.batches():
        progress(f"searching {gallery.path}", done / gallery.count)
        done += len(batch)
        similarity = queries @ vectors(batch.column("embedding")).T
        kept = _largest(similarity, k)
        names = batch.column("id").take(kept.ravel()).to_pylist()
        best = np.hstack([best, np.take_along_axis(similarity, kept, 1)])
        ids = np.hstack([ids, np.array(names, object).reshape(kept.shape)])
        kept = _largest(best, k)
        best, ids = np.take_along_axis(best, kept, 1), np.take_along_axis(ids, kept, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    best, ids = np.take_along_axis(best, order, 1), np.take_along_axis(ids, order, 1)
    return [
        [Match(*pair) for pair in zip(*rows, strict=True) if pair[1] == pair[1]]  # NaN: a row that failed
        for rows in zip(ids.tolist(), best.tolist(), strict=True)
    ]


def _largest(similarity: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Where each row has its k largest numbers, in no order; NaN counts as the least."""
    if similarity.shape[1] <= k:
        return np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
    return np.argpartition(-similarity, k - 1, axis=1)[:, :k]


def sample(gallery: Gallery, size: int) -> tuple[list[str], Embeddings]:
    """Take rows at random: ids, and float32 [N, D]; fewer than ``size`` where chosen rows have failed."""
    chosen = np.random.default_rng(0).permutation(gallery.count)[:size]
    ids, rows, start = list[str](), [np.empty((0, gallery.info.dim), np.float32)], 0
    for batch in gallery.batches():
        inside = np.sort(chosen[(chosen >= start) & (chosen < start + len(batch))]) - start
        start += len(batch)
        some = batch.take(inside)
        right = np.isfinite(vectors(some.column("embedding"))).all(axis=1)
        ids += some.filter(right).column("id").to_pylist()
        rows.append(vectors(some.column("embedding"))[right])
    return ids, np.concatenate(rows)


def embeddings_of(gallery: Gallery, ids: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Find the embeddings of ids, float32 [D] each; an id that is missing or has failed is left out."""
    wanted, found = set(ids), dict[str, npt.NDArray[np.float32]]()
    for batch in gallery.batches():
        names, rows = batch.column("id").to_pylist(), vectors(batch.column("embedding"))
        for index, name in enumerate(names):
            if name in wanted and np.isfinite(rows[index]).all():
                found[name] = rows[index].copy()
    return found


@dataclass(frozen=True, kw_only=True)
class Change:
    """How neighbours and pairs change from an old gallery to a new one, on a sample of ids in both.

    Attributes:
        sample: Number of ids in the sample.
        k: Number of neighbours of each.
        recall: Share of the old neighbours that are neighbours in the new gallery too, mean over the sample.
        nearest: Share of the sample whose nearest neighbour is the same.
        flips: Pairs of the sample that are on different sides of the same threshold.
        matching_threshold: The threshold at which the new gallery takes as many pairs of the sample for one
            person as the old one does at its own; None if the old one takes no pair for one.
        matched_flips: Pairs that are on different sides of the two thresholds; None without a matching one.
    """

    sample: int
    k: int
    recall: float
    nearest: float
    flips: Flips
    matching_threshold: float | None
    matched_flips: int | None


def change(
    old: Gallery,
    new: Gallery,
    *,
    size: int,
    k: int,
    threshold: float,
    progress: Progress = no_progress,
) -> Change:
    """Compare two galleries of the same crops, on a sample of the ids that both have embedded.

    Args:
        old: The gallery in use.
        new: The one that is to replace it.
        size: Number of ids to take from the old gallery.
        k: Number of neighbours of each.
        threshold: Cosine similarity from which two crops are one person.
        progress: Called for each batch that is searched.

    Raises:
        InputError: A gallery cannot be read, or the sample has fewer than two ids in common.
    """
    ids, embeddings = sample(old, size)
    others = embeddings_of(new, ids)
    common = [index for index, name in enumerate(ids) if name in others]
    if len(common) < 2:
        raise InputError(
            f"{old.path} and {new.path} have {len(common)} of {len(ids)} sampled ids in common; expected 2 "
            "or more to compare them. Give the old gallery's own source, so that ids are kept."
        )
    ids, embeddings = [ids[index] for index in common], embeddings[common]
    renewed = np.stack([others[name] for name in ids])
    before = _others(nearest(old, embeddings, k + 1, progress), ids, k)
    after = _others(nearest(new, renewed, k + 1, progress), ids, k)
    left, right = similarities_of_all_pairs(embeddings), similarities_of_all_pairs(renewed)
    matching = _matching(left, right, threshold)
    return Change(
        sample=len(ids),
        k=k,
        recall=float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(before, after, strict=True)])),
        nearest=float(np.mean([a[0] == b[0] for a, b in zip(before, after, strict=True)])),
        flips=flips(left, right, threshold),
        matching_threshold=matching,
        matched_flips=None if matching is None else int(((left >= threshold) != (right >= matching)).sum()),
    )


def _others(found: Sequence[Sequence[Match]], ids: Sequence[str], k: int) -> list[list[str]]:
    """The ids of the k nearest other rows of each id."""
    return [
        [match.id for match in matches if match.id != name][:k]
        for name, matches in zip(ids, found, strict=True)
    ]


def _matching(old: Values, new: Values, threshold: float) -> float | None:
    accepted = int((old >= threshold).sum())
    return float(np.partition(new, len(new) - accepted)[len(new) - accepted]) if accepted else None
