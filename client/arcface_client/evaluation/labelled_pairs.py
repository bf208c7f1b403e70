"""Embedders on a verification set: how well each tells persons apart, and on which pairs two differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..contract import EMBEDDING_DIM, Crops, Embeddings, Progress
from .embedders import Embedder
from .images import decode_crop
from .pair_file import PairFile
from .statistics import Flips, Values, flips, similarities
from .verification import Same, Verification, verify


@dataclass(frozen=True, kw_only=True)
class LabelledPairs:
    """What embedders reach on a verification set; the first one is the baseline.

    Attributes:
        path: The set.
        pairs: How many it has.
        same: How many of them are of one person.
        mirrored: Whether each embedding is the sum of the crop's and its mirror image's.
        verification: What each embedder reaches.
        flips: Pairs that each other embedder judges otherwise than the baseline.
        similarities: Of each pair, of each embedder.
        labels: Whether each pair is one person.
    """

    path: Path
    pairs: int
    same: int
    mirrored: bool
    verification: Sequence[Verification]
    flips: Sequence[Flips]
    similarities: Sequence[Values]
    labels: Same


def verify_all(
    embedders: Sequence[Embedder],
    pair_file: PairFile,
    *,
    batch_size: int,
    threshold: float,
    mirrored: bool = False,
    resize: bool = False,
    progress: Progress,
) -> LabelledPairs:
    """Embed a verification set with each embedder, and judge each by it.

    Args:
        embedders: What is compared; the first one is the baseline.
        pair_file: The set.
        batch_size: Crops in a batch.
        threshold: Cosine similarity from which a pair counts as the same, for the flips.
        mirrored: Add the mirrored crop's embedding, as InsightFace's verification.py does.
        resize: Scale images of another size instead of refusing them.
        progress: Is called for each batch.

    Raises:
        ImageFileError: An image cannot be read.
        ArcFaceError: An embedder failed.
    """
    embeddings = [np.empty((len(pair_file.images), EMBEDDING_DIM), np.float32) for _ in embedders]
    starts = range(0, len(pair_file.images), batch_size)
    for start in starts:
        progress("embedding pairs", start / len(pair_file.images))
        part = slice(start, start + batch_size)
        crops = np.stack(
            [
                decode_crop(image, f"{pair_file.path}: image {start + index}", resize=resize)
                for index, image in enumerate(pair_file.images[part])
            ]
        )
        for embedder, own in zip(embedders, embeddings, strict=True):
            own[part] = _embed(embedder.embed, crops, mirrored)
    similar = [similarities(own[0::2], own[1::2]) for own in embeddings]
    return LabelledPairs(
        path=pair_file.path,
        pairs=len(pair_file.same),
        same=int(pair_file.same.sum()),
        mirrored=mirrored,
        verification=[verify(own, pair_file.same) for own in similar],
        flips=[flips(similar[0], own, threshold) for own in similar[1:]],
        similarities=similar,
        labels=pair_file.same,
    )


def _embed(embed: Callable[[Crops], Embeddings], crops: Crops, mirrored: bool) -> Embeddings:
    if not mirrored:
        return embed(crops)
    return np.asarray(embed(crops) + embed(np.ascontiguousarray(crops[:, :, ::-1])))
