"""Arrays to Triton's messages and back, for both clients."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

from tritonclient import grpc as triton

from ..contract import (
    INPUT_NAME,
    INPUT_SPEC,
    OUTPUT_NAME,
    Crops,
    Embeddings,
    TensorSpec,
    check_shape,
    check_tensors,
)
from ..errors import ModelChangedError, ServerError
from .status import Target

ANY_BATCH: Final = 32
"""Crops in a request to a model that takes any number of them."""


class Answer(NamedTuple):
    """The answer to one request.

    Attributes:
        embeddings: float32 [n, D].
        version: The version that answered; None if the server does not say.
    """

    embeddings: Embeddings
    version: int | None


def batches(crops: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Gather crops into lists of ``size`` as they come; the last one may be shorter."""
    source = iter(crops)
    while batch := list(itertools.islice(source, size)):
        yield batch


class Shape(NamedTuple):
    """How many crops a model takes at once, and how many numbers an embedding has."""

    batch: int
    dim: int


def read_shape(target: Target, response: Any) -> Shape:
    """Read tritonclient's answer to ``get_model_config``.

    Raises:
        ContractError: The model's tensors differ from the contract's.
    """
    config = response.config
    # A model without Triton's batching spells the batch dimension out, as -1.
    skip = 0 if config.max_batch_size > 0 else 1

    def specs(tensors: Any) -> list[TensorSpec]:
        names = {number: name for name, number in triton.model_config_pb2.DataType.items()}
        return [  # a newer server may have types that tritonclient does not know
            (
                tensor.name,
                names.get(tensor.data_type, "an unknown type").removeprefix("TYPE_"),
                tuple(tensor.dims)[skip:],
            )
            for tensor in tensors
        ]

    dim = check_tensors(str(target), specs(config.input), specs(config.output))
    takes_any = skip and config.input[0].dims[0] == -1
    return Shape(ANY_BATCH if takes_any else int(config.max_batch_size) or 1, dim)


def build(target: Target, crops: Crops) -> dict[str, Any]:
    """Arguments for tritonclient's ``infer`` and ``async_infer``; crops are uint8 [N, 112, 112, 3]."""
    image = triton.InferInput(INPUT_NAME, list(crops.shape), INPUT_SPEC[1])
    image.set_data_from_numpy(crops)
    return {
        "model_name": target.model,
        "model_version": target.version_text,
        "inputs": [image],
        "outputs": [triton.InferRequestedOutput(OUTPUT_NAME)],
    }


def read(target: Target, result: Any, count: int, dim: int | None) -> Answer:
    """Read tritonclient's result for ``count`` crops.

    Raises:
        ServerError: The shape is not [count, dim], or the data is not of that shape.
    """
    output = result.get_output(OUTPUT_NAME)
    check_shape(str(target), None if output is None else tuple(output.shape), count, dim)
    try:
        embeddings: Embeddings = result.as_numpy(OUTPUT_NAME)
    except ValueError as error:
        raise ServerError(
            f"{target} answered without the embeddings' data ({error}). A known cause is numpy 2 beside "
            "Triton 2.51 of PyPI: run `pip install 'numpy<2'` where the server runs."
        ) from error
    version = result.get_response().model_version
    return Answer(embeddings, int(version) if version.isdecimal() else None)


def pinned(target: Target, answer: Answer) -> Target:
    """Where the next request of a call goes: to the version that answered first.

    Raises:
        ModelChangedError: The answer is of another version, which was loaded in the middle of the call.
    """
    if target.version is None and answer.version is not None:
        return replace(target, version=answer.version)
    if answer.version not in (None, target.version):
        raise ModelChangedError(
            f"Version {answer.version} answered in the middle of a call that {target} began: it was loaded "
            "in the meantime. No embeddings were mixed; call again, or name a version."
        )
    return target
