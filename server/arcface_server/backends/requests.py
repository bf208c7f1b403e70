"""From Triton's requests to its responses: several requests are answered with one run of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from arcface_client.contract import INPUT_NAME, OUTPUT_NAME, Crops, Embeddings
from arcface_client.errors import ArcFaceError


def respond(pb_utils: ModuleType, embed: Callable[[Crops], Embeddings], requests: Sequence[Any]) -> list[Any]:
    """Answer the requests that Triton has batched, each with its embeddings or with its own error.

    Args:
        pb_utils: ``triton_python_backend_utils``, which only a ``model.py`` in Triton's stub can import.
        embed: Runs the model.
        requests: Triton's requests.

    Returns:
        Triton's responses.
    """

    def response(answer: Embeddings | ArcFaceError) -> Any:
        if isinstance(answer, ArcFaceError):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer)))
        return pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT_NAME, answer)])

    batches = [pb_utils.get_input_tensor_by_name(request, INPUT_NAME).as_numpy() for request in requests]
    return [response(answer) for answer in embed_merged(embed, batches)]


def embed_merged(
    embed: Callable[[Crops], Embeddings], batches: Sequence[Crops]
) -> list[Embeddings | ArcFaceError]:
    """Embed the crops of several requests in one run, and give each request its own rows.

    The crops of a single request go into the model as they are; those of several are copied once. The
    returned rows are views. If the merged run fails, each request runs alone, so that only the faulty one
    gets the error.

    Args:
        embed: Runs the model.
        batches: The crops of each request.

    Returns:
        For each request its embeddings, or its error.
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
