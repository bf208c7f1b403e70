"""From Triton's requests to its responses, for every backend of this project.

Only Triton's stub can import ``triton_python_backend_utils``, so nothing but a ``model.py`` imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import triton_python_backend_utils as pb_utils

from arcface_client.contract import INPUT_NAME, OUTPUT_NAME, Crops, Embeddings
from arcface_client.errors import ArcFaceError

from .merging import embed_merged


def respond(
    embed: Callable[[Crops], Embeddings], requests: Sequence[pb_utils.InferenceRequest]
) -> list[pb_utils.InferenceResponse]:
    """Answer the requests that Triton has batched, each with its embeddings or with its own error."""
    batches = [pb_utils.get_input_tensor_by_name(request, INPUT_NAME).as_numpy() for request in requests]
    return [_response(answer) for answer in embed_merged(embed, batches)]


def _response(answer: Embeddings | ArcFaceError) -> pb_utils.InferenceResponse:
    if isinstance(answer, ArcFaceError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer)))
    return pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT_NAME, answer)])
