"""What goes to Triton and comes from it, for both clients: a model's description, a request, an answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tritonclient import grpc as triton

from ..contract import (
    INPUT_NAME,
    INPUT_SPEC,
    OUTPUT_NAME,
    Crops,
    Embeddings,
    TensorSpec,
    check_finite,
    check_shape,
    check_tensors,
)
from ..errors import ModelChangedError, ServerError
from .status import Target


@dataclass(frozen=True)
class ServedModel:
    """What a client must know of a model before its first request."""

    max_batch_size: int


def served_model(target: Target, response: Any) -> ServedModel:
    """Read tritonclient's answer to ``get_model_config``.

    Raises:
        ContractError: The model's tensors are not the contract's.
    """
    config = response.config
    # A model without Triton's batching spells the batch dimension out, as -1.
    skip = 0 if config.max_batch_size > 0 else 1

    def specs(tensors: Any) -> list[TensorSpec]:
        names = triton.model_config_pb2.DataType
        return [
            (tensor.name, names.Name(tensor.data_type).removeprefix("TYPE_"), tuple(tensor.dims)[skip:])
            for tensor in tensors
        ]

    check_tensors(str(target), specs(config.input), specs(config.output))
    return ServedModel(max_batch_size=config.max_batch_size or 1)


def runs(crops: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Gather crops into runs of ``size`` as they come; the last one may be shorter."""
    source = iter(crops)
    while run := list(itertools.islice(source, size)):
        yield run


def infer_arguments(target: Target, crops: Crops) -> dict[str, Any]:
    """Arguments for ``infer`` and ``async_infer``.

    Args:
        target: Where the request goes.
        crops: Its crops, uint8 [N, 112, 112, 3].
    """
    image = triton.InferInput(INPUT_NAME, list(crops.shape), INPUT_SPEC[1])
    embedding = triton.InferRequestedOutput(OUTPUT_NAME)
    image.set_data_from_numpy(crops)
    return {
        "model_name": target.model,
        "model_version": target.version_text,
        "inputs": [image],
        "outputs": [embedding],
    }


class Answer(NamedTuple):
    """What one request gave.

    Attributes:
        embeddings: float32 [n, 512].
        version: The version that answered; None when the server does not say.
    """

    embeddings: Embeddings
    version: int | None


class OneVersion:
    """Sees to it that one version answers all requests of a call: another may be loaded in the middle.

    Args:
        target: Where the call goes.

    Attributes:
        target: Where its next request goes: to the version that answered first.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def take(self, answer: Answer) -> Embeddings:
        """Take an answer, if it is of the version that answered first.

        Raises:
            ModelChangedError: It is of another.
        """
        if self.target.version is None and answer.version is not None:
            self.target = replace(self.target, version=answer.version)
        if answer.version not in (None, self.target.version):
            raise ModelChangedError(
                f"Version {answer.version} answered in the middle of a call that {self.target} had begun: it "
                "was loaded meanwhile. Nothing is mixed; call again, or name a version."
            )
        return answer.embeddings


def answer_from(target: Target, result: Any, count: int) -> Answer:
    """Read one answer.

    Args:
        target: Where the request went.
        result: tritonclient's result.
        count: How many crops it had.

    Raises:
        ServerError: It is of another version than was asked, has another shape than ``count`` embeddings, or
            values that are not finite.
    """
    text = result.get_response().model_version
    version = int(text) if text else None
    if target.version is not None and version not in (None, target.version):
        raise ServerError(f"Version {version} answered a request for {target}.")
    output = result.get_output(OUTPUT_NAME)
    shape = None if output is None else tuple(output.shape)
    check_shape(str(target), shape, count)
    embeddings: Embeddings = result.as_numpy(OUTPUT_NAME)
    check_finite(str(target), embeddings)
    return Answer(embeddings, version)
