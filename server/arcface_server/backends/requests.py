"""From Triton's requests to its responses: several requests are answered with one run of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from arcface_client.contract import INPUT_NAME, OUTPUT_NAME, Crops, Embeddings
from arcface_client.errors import ArcFaceError
from arcface_client.runtimes.base import Embed

EmbedJoined = Callable[[Sequence[Crops]], Embeddings]
"""Embeds several batches as one."""


def joined(embed: Embed) -> EmbedJoined:
    """Join batches before they are embedded; a single one is not copied."""
    return lambda batches: embed(batches[0] if len(batches) == 1 else np.concatenate(batches))


def respond(pb_utils: ModuleType, embed: EmbedJoined, requests: Sequence[Any]) -> list[Any]:
    """Answer the requests that Triton has batched, each with its embeddings or with its own error.

    All requests go into one run of the model. If that run fails, each request runs alone, so that only the
    faulty one gets the error. ``pb_utils`` is ``triton_python_backend_utils``, which only a ``model.py`` in
    Triton's stub can import.
    """
    batches = [crops_of(pb_utils, request) for request in requests]

    def alone(batch: Crops) -> Any:
        try:
            return split(pb_utils, embed([batch]), [len(batch)])[0]
        except ArcFaceError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    if len(batches) == 1:
        return [alone(batches[0])]
    try:
        embeddings = embed(batches)
    except ArcFaceError:
        return [alone(batch) for batch in batches]
    return split(pb_utils, embeddings, [len(batch) for batch in batches])


def crops_of(pb_utils: ModuleType, request: Any) -> Crops:
    """The crops of a request, uint8 [N, 112, 112, 3]."""
    crops: Crops = pb_utils.get_input_tensor_by_name(request, INPUT_NAME).as_numpy()
    return crops


def split(pb_utils: ModuleType, embeddings: Embeddings, counts: Sequence[int]) -> list[Any]:
    """Triton's responses to requests with so many crops each."""
    ends = np.cumsum(counts[:-1], dtype=int)
    return [
        pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT_NAME, rows)])
        for rows in np.split(embeddings, ends)
    ]
