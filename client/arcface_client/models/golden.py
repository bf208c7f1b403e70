"""The golden crops: a model's embeddings of them show what it computes, whatever its name says.

They are drawn, not photographs of people, and come with the package. ``arcface_builder`` made them::

    import numpy
    from arcface_builder.check.crops import face_like
    numpy.savez_compressed("client/arcface_client/models/golden.npz", crops=face_like(8, seed=114))

The file counts: the arithmetic of another machine may round a pixel differently.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Final

import numpy as np
import numpy.typing as npt

from ..contract import LENGTH_TOLERANCE, Crops, Embeddings
from .embedding_space import EmbeddingSpace

GOLDEN_COUNT: Final = 8

_MOST_ALIKE: Final = 0.8
"""Mean cosine similarity of different golden crops; trained networks stay below 0.7, also on drawn faces."""


@dataclass(frozen=True, eq=False)
class GoldenReference:
    """The embeddings that a model must give for the golden crops.

    Attributes:
        embeddings: float32 [8, D], unit rows.
        space: Their embedding space, with the precision class of the model that is compared with them;
            unknown by default.
        drift: What a model may drift from them even if ``max_drift_cosine`` is less. It is what int8 drifted
            from its source: another processor rounds other numbers up, and the difference is about as large.
    """

    embeddings: Embeddings
    space: EmbeddingSpace = field(default_factory=EmbeddingSpace)
    drift: float = 0.0


@cache
def golden_crops() -> Crops:
    """The golden crops: uint8 [8, 112, 112, 3], BGR, read-only."""
    with resources.files(__package__).joinpath("golden.npz").open("rb") as file, np.load(file) as archive:
        crops: Crops = archive["crops"]
    crops.setflags(write=False)
    return crops


@cache
def golden_sha256() -> str:
    """SHA-256 of the golden crops' bytes; a manifest names its crops by it."""
    return hashlib.sha256(golden_crops().tobytes()).hexdigest()


def drifts(
    left: Embeddings | npt.NDArray[np.float64], right: Embeddings | npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The drift between rows of two sets of unit embeddings [N, D]: float64 [N]; NaN where a number is.

    Drift is the cosine distance. It is computed as half the squared distance, which is the same for rows of
    length one, is exact for small drifts, and notices a row of another length.
    """
    difference = left.astype(np.float64) - right.astype(np.float64)
    squares: npt.NDArray[np.float64] = np.einsum("nd,nd->n", difference, difference)
    return squares / 2


def largest_drift(left: Embeddings, right: Embeddings) -> float:
    """The largest drift between rows of two sets of unit embeddings [N, D]; NaN if a number is."""
    return float(np.max(drifts(left, right)))


def cannot_tell_apart(embeddings: Embeddings) -> str | None:
    """Tell whether a network takes the golden crops, which are different faces, for nearly the same one.

    Args:
        embeddings: Of the golden crops, float32 [8, D], unit rows.

    Returns:
        A sentence with the usual causes; None for a network that tells the faces apart.
    """
    similarities = (embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)]
    if similarities.mean() <= _MOST_ALIKE:
        return None
    return (
        f"different faces have a mean cosine similarity of {similarities.mean():.3f}; expected at most "
        f"{_MOST_ALIKE}. It cannot tell faces apart. The usual causes are a normalisation or a channel order "
        "that it was not trained with (state them when it is built: --normalisation, --color), an export "
        "that collapsed, or random weights."
    )


def to_text(embeddings: Embeddings) -> str:
    """Write the golden crops' embeddings as a manifest holds them: base64 of little-endian float32."""
    return base64.b64encode(embeddings.astype("<f4").tobytes()).decode("ascii")


def from_text(text: str) -> Embeddings:
    """Read what ``to_text`` wrote: float32 [8, D].

    Raises:
        ValueError: It is something else; the message says what was expected.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"Expected base64 ({error})") from error
    dim, rest = divmod(len(content), GOLDEN_COUNT * 4)
    if rest or not dim:
        raise ValueError(f"Expected {GOLDEN_COUNT} rows of float32, not {len(content):,} bytes")
    embeddings = np.frombuffer(content, "<f4").reshape(GOLDEN_COUNT, dim).astype(np.float32)
    with np.errstate(all="ignore"):  # of huge numbers
        lengths = np.linalg.norm(embeddings, axis=1)
    if not np.all(np.abs(lengths - 1) < LENGTH_TOLERANCE):  # written so that NaN fails as well
        raise ValueError("Expected rows of length one")
    return embeddings
