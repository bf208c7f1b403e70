"""Answer several requests with one run of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ArcFaceError


def embed_merged(
    embed: Callable[[Crops], Embeddings], batches: Sequence[Crops]
) -> list[Embeddings | ArcFaceError]:
    """Embed the crops of several requests in one run, and give each request its own rows.

    The crops of a lone request go into the model as they are, those of several are copied once, to
    stand side by side. The rows that come back are views.

    When the merged run fails, each request runs alone, so that the one to blame does not take the
    others with it.

    Args:
        embed: Runs the model.
        batches: The crops of each request.

    Returns:
        For each request its embeddings, or the error that it alone is answered with.
    """
    if len(batches) == 1:
        return [_embed_alone(embed, batches[0])]
    try:
        embeddings = embed(np.concatenate(batches))
    except ArcFaceError:
        return [_embed_alone(embed, batch) for batch in batches]
    return list(np.split(embeddings, np.cumsum([len(batch) for batch in batches[:-1]])))


def _embed_alone(embed: Callable[[Crops], Embeddings], batch: Crops) -> Embeddings | ArcFaceError:
    try:
        return embed(batch)
    except ArcFaceError as error:
        return error
