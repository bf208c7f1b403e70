"""Verification sets such as InsightFace's ``lfw.bin``, and what systems reach on them.

A set is a pickle of a tuple: encoded images, two for each pair, and whether each pair is one person. Images
are bytes, ``str`` of Python 2, or numpy arrays of bytes as OpenCV's ``imencode`` gives them. Labels are
booleans, 0 and 1, or numpy's. Loading a pickle calls what it names. So the few names that sets need give
small functions of this module, any other name is an error, and no code of a file ever runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ..contract import Embeddings, Progress
from ..errors import DAMAGE, PairFileError
from .images import read_crop
from .scores import Flips, Same, Values, Verification, flips, similarities, verify
from .systems import System

_TYPES: Final = ("b1", "u1", "i1", "i4", "i8")


@dataclass(frozen=True, eq=False)
class PairFile:
    """A verification set.

    Attributes:
        path: The file.
        images: Encoded images; those of pair i are 2i and 2i + 1.
        same: Whether each pair is one person, bool [pairs].
    """

    path: Path
    images: Sequence[bytes]
    same: Same


def read_pair_file(path: Path) -> PairFile:
    """Read a verification set.

    Raises:
        PairFileError: The file is missing, truncated, or not a set of pairs, or its pickle names code.
    """
    try:
        with path.open("rb") as file:
            loaded = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise PairFileError(f"{path} cannot be read: {error.strerror}.") from error
    except _CodeFoundError as error:
        raise PairFileError(
            f"{path} holds code: its pickle names {error}, which a set of pairs does not need. Nothing of it "
            "was run; do not load this file with Python's pickle."
        ) from error
    except (*DAMAGE, pickle.UnpicklingError) as error:
        why = " ".join(str(error).split())
        raise PairFileError(
            f"{path} cannot be read as a pickle ({why}); expected a whole set such as lfw.bin."
        ) from error
    images, labels = loaded if isinstance(loaded, (tuple, list)) and len(loaded) == 2 else (None, None)
    if not isinstance(images, (list, tuple)) or not isinstance(labels, (list, tuple, np.ndarray)):
        raise PairFileError(
            f"{path} is a pickle of something else; expected (images, whether each pair is the same), as in "
            "lfw.bin."
        )
    if not images or len(images) != 2 * len(labels):
        raise PairFileError(
            f"{path} holds {len(images):,} images for {len(labels):,} pairs; expected two images for each "
            "pair."
        )
    for index, label in enumerate(labels):
        if np.ndim(label) or label not in (0, 1):
            raise PairFileError(f"{path}: the label of pair {index} is {label!r}; expected true or false.")
    encoded = [_encoded(path, index, image) for index, image in enumerate(images)]
    return PairFile(path, encoded, np.array(labels, np.bool_))


def _encoded(path: Path, index: int, image: object) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.tobytes()
    if not isinstance(image, (bytes, bytearray)):
        kind = type(image).__name__
        raise PairFileError(f"{path}: image {index} is of type {kind}; expected the bytes of a JPEG or PNG.")
    return bytes(image)


class _CodeFoundError(Exception):
    """The pickle names something that a set does not need."""


class _Call(NamedTuple):
    """Something that a pickle may call. As a tuple, it cannot be changed by a pickle."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _dtype(name: str | bytes, *_: object) -> np.dtype[Any]:
    text = name.decode() if isinstance(name, bytes) else name  # bytes from Python 2
    if text not in _TYPES:
        raise ValueError(f"the data type {text!r} is not one that such sets have")
    return np.dtype(text)


def _array(*_: object) -> np.ndarray[Any, Any]:
    """``_reconstruct``: an empty array, whose content numpy's ``__setstate__`` then takes from the pickle."""
    return np.empty(0, np.uint8)


def _buffer(buffer: bytes, dtype: np.dtype[Any], *_: object) -> np.ndarray[Any, Any]:
    return np.frombuffer(buffer, dtype)


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:
    return np.frombuffer(content, dtype)[0]


def _text(text: str, encoding: str | bytes) -> bytes:
    """``_codecs.encode``: how Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"the encoding {encoding!r} is not one that such sets have")
    return text.encode("latin-1")


_NUMPY: Final[dict[str, Callable[..., Any]]] = {
    "multiarray._reconstruct": _array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _buffer,
}

_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "_codecs.encode": _text,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _array,
    **{f"numpy.core.{name}": call for name, call in _NUMPY.items()},
    **{f"numpy._core.{name}": call for name, call in _NUMPY.items()},  # since numpy 2
}


# In Python, since the one in C (seen with 3.11) makes a list as long as an index in the file says:
# seven bytes can ask for 64 GB, so a limit on the file's size would not help.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _CALLS:
            raise _CodeFoundError(full)
        return _Call(_CALLS[full])


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores:
    """What systems reach on a verification set; the first one is the baseline.

    Attributes:
        pair_file: The set.
        mirrored: Whether each embedding is the sum of the crop's and its mirror image's.
        verification: One for each system.
        flips: One for each system but the baseline.
        similarities: Of each pair, float64 [pairs], one for each system.
    """

    pair_file: PairFile
    mirrored: bool
    verification: Sequence[Verification]
    flips: Sequence[Flips]
    similarities: Sequence[Values]


def score_pairs(
    systems: Sequence[System],
    pair_file: PairFile,
    *,
    batch_size: int,
    threshold: float,
    mirrored: bool,
    resize: bool,
    progress: Progress,
) -> PairScores:
    """Embed a verification set with each system, and score the systems; the first one is the baseline.

    An image is embedded once, however many pairs it is in.

    Raises:
        ImageFileError: An image cannot be read, or has another size and ``resize`` is not set.
        ArcFaceError: A system failed.
    """
    first: dict[bytes, int] = {}
    for index, image in enumerate(pair_file.images):
        first.setdefault(image, index)
    different = list(first.items())
    embeddings: list[list[Embeddings]] = [[] for _ in systems]
    for start in range(0, len(different), batch_size):
        progress("embedding pairs", start / len(different))
        crops = np.stack(
            [
                read_crop(image, name=f"{pair_file.path}: image {index}", resize=resize)
                for image, index in different[start : start + batch_size]
            ]
        )
        for system, own in zip(systems, embeddings, strict=True):
            batch = system.embed(crops)
            if mirrored:
                batch = batch + system.embed(np.ascontiguousarray(crops[:, :, ::-1]))
            own.append(batch)
    row_of = {image: row for row, image in enumerate(first)}
    rows = np.array([row_of[image] for image in pair_file.images])
    each = [np.concatenate(own) for own in embeddings]
    similar = [similarities(own[rows[0::2]], own[rows[1::2]]) for own in each]
    return PairScores(
        pair_file=pair_file,
        mirrored=mirrored,
        verification=[verify(own, pair_file.same) for own in similar],
        flips=[flips(similar[0], own, threshold) for own in similar[1:]],
        similarities=similar,
    )
