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
    faulty one gets the error.

    Args:
        pb_utils: ``triton_python_backend_utils``, which only a ``model.py`` in Triton's stub can import.
        embed: Runs the model.
        requests: Triton's requests.

    Returns:
        Triton's responses.
    """
    batches: list[Crops] = [
        pb_utils.get_input_tensor_by_name(request, INPUT_NAME).as_numpy() for request in requests
    ]

    def response(embeddings: Embeddings) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT_NAME, embeddings)])

    def alone(batch: Crops) -> Any:
        try:
            return response(embed([batch]))
        except ArcFaceError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    if len(batches) == 1:
        return [alone(batches[0])]
    try:
        embeddings = embed(batches)
    except ArcFaceError:
        return [alone(batch) for batch in batches]
    ends = np.cumsum([len(batch) for batch in batches[:-1]])
    return [response(rows) for rows in np.split(embeddings, ends)]
