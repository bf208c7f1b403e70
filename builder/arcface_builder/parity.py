"""Prove that a serving graph gives its source model's embeddings, before anyone can be served by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from arcface_client.contract import Crops, Embeddings

from . import faces
from .errors import ParityError
from .graph import session
from .normalisation import Normalisation

TOLERANCE: Final = 1e-5
"""Largest absolute difference allowed between two unit embeddings' numbers."""

CONTROL: Final = 1e-3
"""Least difference that swapped colour channels must make; below it the check would be blind."""

BATCH_SIZES: Final = (1, 3, 8)

Embed = Callable[[Crops], Embeddings]
"""Unit embeddings, float32 [N, 512], of BGR crops."""


@dataclass(frozen=True)
class Parity:
    """What a parity check measured.

    Attributes:
        max_abs_difference: Largest difference between two numbers of the unit embeddings.
        max_drift_cosine: Largest 1 - cosine similarity.
        control_difference: The same difference for crops with red and blue swapped, which must be large.
        crops: Number of crops compared, half of them noise and half face-like.
        batch_sizes: Batch sizes that the serving graph was run with.
    """

    max_abs_difference: float
    max_drift_cosine: float
    control_difference: float
    crops: int
    batch_sizes: tuple[int, ...]


def check_parity(reference: Embed, serving: Embed, *, seed: int = 1) -> Parity:
    """Compare two ways of embedding on noise and face-like crops.

    Raises:
        ParityError: They differ by more than ``TOLERANCE``, or the check cannot tell colours apart.
    """
    half = max(BATCH_SIZES) // 2
    crops = np.concatenate([faces.noise(half, seed), faces.face_like(half, seed)])
    expected = reference(crops)
    runs = [_in_batches(serving, crops, size) for size in BATCH_SIZES]
    parity = Parity(
        max_abs_difference=max(_difference(expected, run) for run in runs),
        max_drift_cosine=max(
            float((1 - (expected.astype(np.float64) * run).sum(axis=1)).max()) for run in runs
        ),
        control_difference=_difference(expected, serving(np.ascontiguousarray(crops[..., ::-1]))),
        crops=len(crops),
        batch_sizes=BATCH_SIZES,
    )
    # Written so that NaN fails as well.
    if not parity.max_abs_difference <= TOLERANCE:
        raise ParityError(
            f"The serving graph's embeddings differ from the source model's by {parity.max_abs_difference:.2g}; "
            f"expected at most {TOLERANCE:g}. Nothing was published; please report this with the output of "
            "`arcface-builder inspect`."
        )
    if not parity.control_difference >= CONTROL:
        raise ParityError(
            f"Swapping red and blue changes the embeddings by only {parity.control_difference:.2g}; expected at "
            f"least {CONTROL:g}. A model that is blind to colour is no ArcFace; check its weights."
        )
    return parity


def source_embedder(
    proto: onnx.ModelProto, caller: Normalisation, *, channels: str, channels_last: bool
) -> Embed:
    """Embed with a source model and reference preprocessing, as InsightFace does: crop by crop.

    One crop at a time is the one batch size that every source file supports.

    Args:
        proto: The model as it was read.
        caller: What the caller does with the pixels.
        channels: Channel order that the model wants, "RGB" or "BGR".
        channels_last: It wants [1, 112, 112, 3].

    Raises:
        RUN_ERRORS: ONNX Runtime cannot load it.
    """
    source = session(proto.SerializeToString())
    (image,) = (value for value in source.get_inputs())
    dtype = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16}.get(image.type, np.float32)

    def embed(crops: Crops) -> Embeddings:
        pixels = caller.apply(crops)
        if channels == "BGR":
            pixels = pixels[:, ::-1]
        if channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        pixels = np.ascontiguousarray(pixels.astype(dtype))
        rows = [source.run(None, {image.name: pixels[i : i + 1]})[0].reshape(-1) for i in range(len(pixels))]
        raw = np.stack(rows).astype(np.float64)
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)

    return embed


def _in_batches(embed: Embed, crops: Crops, size: int) -> Embeddings:
    return np.concatenate([embed(crops[start : start + size]) for start in range(0, len(crops), size)])


def _difference(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    return float(np.abs(left - right).max())
