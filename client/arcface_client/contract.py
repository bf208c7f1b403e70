"""The contract between serving graph, server and client; see ``docs/design.md``.

A model of this project takes face crops as a pipeline has them and returns unit vectors. Everything between
(cast, normalisation, channel order, layout, the network, L2 normalisation) is in the graph, so that two
backends or two clients cannot differ in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .errors import ContractError, ServerError

INPUT_NAME: Final = "image"
"""uint8, [N, 112, 112, 3], BGR, as OpenCV and InsightFace give it."""

OUTPUT_NAME: Final = "embedding"
"""float32, [N, D], rows of length one; D is the network's own."""

CROP_SIZE: Final = 112
CROP_SHAPE: Final = (CROP_SIZE, CROP_SIZE, 3)
CROP_BYTES: Final = CROP_SIZE * CROP_SIZE * 3
EMBEDDING_DIM: Final = 512
"""D of ArcFace's own networks. Others have 128 or 256, so take D from the model, never from here."""

LENGTH_TOLERANCE: Final = 0.01
"""How far an embedding's length may be from one; float16 rounds it."""

Crops = npt.NDArray[np.uint8]
"""A batch of face crops, uint8 [N, 112, 112, 3], BGR."""

Embeddings = npt.NDArray[np.float32]
"""A batch of embeddings, float32 [N, D]."""

Progress = Callable[[str, float | None], None]
"""Called by a long task with its stage and the share done, 0 to 1; None if the share is not known."""

TensorSpec = tuple[str, str, tuple[int, ...]]
"""Name, Triton data type and dimensions of a tensor, without the batch dimension."""

INPUT_SPEC: Final[TensorSpec] = (INPUT_NAME, "UINT8", CROP_SHAPE)


def no_progress(stage: str, done: float | None) -> None:
    """Ignore progress: the default callback."""


def output_spec(dim: int) -> TensorSpec:
    """The output of a model that gives embeddings of ``dim`` numbers."""
    return OUTPUT_NAME, "FP32", (dim,)


def check_tensors(model: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
    """Check that a model has the contract's tensors and no others.

    Args:
        model: The model, as a message names it.
        inputs: Its inputs, data types as Triton writes them ("UINT8"), shapes without batch.
        outputs: Its outputs, in the same form.

    Returns:
        D, how many numbers an embedding has.

    Raises:
        ContractError: The tensors differ.
    """
    dims = outputs[0][2] if len(outputs) == 1 else ()
    dim = dims[0] if len(dims) == 1 else None
    if (
        isinstance(dim, int)
        and dim > 0
        and (list(inputs), list(outputs)) == ([INPUT_SPEC], [output_spec(dim)])
    ):
        return dim
    raise ContractError(
        f"{model} has inputs {_describe(inputs)} and outputs {_describe(outputs)}; "
        f"expected {_describe([INPUT_SPEC])} and {OUTPUT_NAME} FP32[N, D]. "
        "Build the model with `arcface-builder build`."
    )


def check_shape(model: str, shape: tuple[int, ...] | None, count: int, dim: int | None = None) -> None:
    """Check the shape of a model's embeddings.

    Args:
        model: The model, as a message names it.
        shape: The shape; None if the output is missing.
        count: How many crops the model was given.
        dim: D of the model; None allows any.

    Raises:
        ServerError: The shape is not [count, D].
    """
    if shape is None or len(shape) != 2 or shape[0] != count or dim not in (None, shape[1]):
        wanted = f"({count}, {'D' if dim is None else dim})"
        raise ServerError(f"{model} answered with shape {shape}; expected {wanted}.")


def _describe(specs: Sequence[TensorSpec]) -> str:
    texts = [f"{name} {datatype}[{', '.join(['N', *map(str, shape)])}]" for name, datatype, shape in specs]
    return " + ".join(texts) or "none"
