"""Verification sets such as InsightFace's ``lfw.bin``, and what systems reach on them.

A set is a pickle of a tuple: encoded images, two for each pair, and whether each pair is one person. Images
are bytes, ``str`` of Python 2, or numpy arrays of bytes as OpenCV's ``imencode`` gives them. Labels are
booleans, 0 and 1, or numpy's. Loading a pickle calls what it names. So here the few names that sets need give
stand-ins, which only keep their arguments. Any other name is an error, and no code of a file ever runs.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..contract import EMBEDDING_DIM, Progress
from ..errors import PairFileError
from .images import read_crop
from .scores import Flips, Same, Values, Verification, flips, similarities, verify
from .systems import System

_TYPES: Final = ("b1", "u1", "i1", "i4", "i8")

_PICKLE_ERRORS: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What pickle raises for bytes that are not a pickle."""


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
        content = path.read_bytes()
    except OSError as error:
        raise PairFileError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _CodeFoundError as error:
        raise PairFileError(
            f"{path} holds code: its pickle names {error}, which a set of pairs does not need. Nothing of it "
            "was run; do not load this file with Python's pickle."
        ) from error
    except _PICKLE_ERRORS as error:
        why = " ".join(str(error).split())
        raise PairFileError(
            f"{path} cannot be read as a pickle ({why}); expected a whole set such as lfw.bin."
        ) from error
    images, labels = loaded if isinstance(loaded, (tuple, list)) and len(loaded) == 2 else (None, None)
    if isinstance(labels, _Array):
        labels = labels.values()
    if not isinstance(images, (list, tuple)) or not isinstance(labels, (list, tuple)):
        raise PairFileError(
            f"{path} is a pickle of something else; expected (images, whether each pair is the same), as in "
            "lfw.bin."
        )
    if not images or len(images) != 2 * len(labels):
        raise PairFileError(
            f"{path} holds {len(images):,} images for {len(labels):,} pairs; expected two images for each "
            "pair."
        )
    encoded = [_image(path, index, image) for index, image in enumerate(images)]
    return PairFile(path, encoded, np.array([_label(path, i, label) for i, label in enumerate(labels)]))


def _image(path: Path, index: int, image: object) -> bytes:
    content = _bytes(image.raw if isinstance(image, _Array) and image.type == "u1" else image)
    if content is None:
        kind = "array" if isinstance(image, _Array) else type(image).__name__
        raise PairFileError(f"{path}: image {index} is of type {kind}; expected the bytes of a JPEG or PNG.")
    return content


def _label(path: Path, index: int, label: object) -> bool:
    if isinstance(label, _Array):
        values = label.values() or []
        label = values[0] if len(values) == 1 else None
    if label not in (0, 1):
        raise PairFileError(f"{path}: the label of pair {index} is {label!r}; expected true or false.")
    return bool(label)


def _bytes(value: object) -> bytes | None:
    """The bytes that a value of the pickle is or stands for; None if it is something else."""
    if isinstance(value, _Text) and value.given[1:] in (("latin1",), (b"latin1",)):
        text = value.given[0]
        try:
            return text.encode("latin-1") if isinstance(text, str) else None
        except UnicodeEncodeError:
            return None
    return bytes(value) if isinstance(value, (bytes, bytearray)) else None


class _CodeFoundError(Exception):
    """The pickle names something that a set does not need."""


class _StandIn:
    """What a name in the pickle gives: keeps what it is called with, and the state that it is given."""

    __slots__ = ("given", "state")
    given: tuple[Any, ...]
    state: object

    def __new__(cls, *given: Any) -> _StandIn:
        made = super().__new__(cls)
        made.given, made.state = given, None
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype(_StandIn):
    """Stands in for ``numpy.dtype``."""


class _Text(_StandIn):
    """Stands in for ``_codecs.encode``: how Python 3 writes bytes for Python 2."""


class _Array(_StandIn):
    """Stands in for a numpy array or number: a data type and bytes."""

    def parts(self) -> tuple[Any, ...]:
        """The state that ``_reconstruct`` makes an array from, or the arguments of numpy's ``scalar``."""
        if isinstance(self.state, tuple) and len(self.state) == 5:
            return self.state[2::2]
        return self.given[:2]

    @property
    def type(self) -> str | None:
        """Numpy's name of the data type, if it is one that sets have."""
        dtype = next(iter(self.parts()), None)
        name = dtype.given[0] if isinstance(dtype, _Dtype) and dtype.given else None
        name = name.decode("latin-1") if isinstance(name, bytes) else name  # of Python 2
        return name if isinstance(name, str) and name in _TYPES else None

    @property
    def raw(self) -> bytes | None:
        """The bytes."""
        return _bytes(self.parts()[-1])

    def values(self) -> list[Any] | None:
        """The values, flat; None if the data type or the number of bytes is wrong."""
        if self.type is None or (raw := self.raw) is None or len(raw) % np.dtype(self.type).itemsize:
            return None
        return list(np.frombuffer(raw, self.type).tolist())


class _BufferArray(_Array):
    """Stands in for numpy's ``_frombuffer``, which has the bytes first."""

    def parts(self) -> tuple[Any, ...]:
        """The data type and the bytes."""
        return self.given[1::-1]


_NUMPY: Final = {
    "multiarray._reconstruct": _Array,
    "multiarray.scalar": _Array,
    "numeric._frombuffer": _BufferArray,
}

_STAND_INS: Final[Mapping[str, type[_StandIn]]] = {
    "_codecs.encode": _Text,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.core.{name}": stand_in for name, stand_in in _NUMPY.items()},
    **{f"numpy._core.{name}": stand_in for name, stand_in in _NUMPY.items()},  # since numpy 2
}


class _Unpickler(pickle.Unpickler):
    """Gives stand-ins for the names that sets need, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _STAND_INS:
            raise _CodeFoundError(full)
        return _STAND_INS[full]


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

    Raises:
        ImageFileError: An image cannot be read, or has another size and ``resize`` is not set.
        ArcFaceError: A system failed.
    """
    embeddings = [np.empty((len(pair_file.images), EMBEDDING_DIM), np.float32) for _ in systems]
    for start in range(0, len(pair_file.images), batch_size):
        progress("embedding pairs", start / len(pair_file.images))
        part = slice(start, start + batch_size)
        crops = np.stack(
            [
                read_crop(image, name=f"{pair_file.path}: image {start + index}", resize=resize)
                for index, image in enumerate(pair_file.images[part])
            ]
        )
        for system, own in zip(systems, embeddings, strict=True):
            own[part] = system.embed(crops)
            if mirrored:
                own[part] += system.embed(np.ascontiguousarray(crops[:, :, ::-1]))
    similar = [similarities(own[0::2], own[1::2]) for own in embeddings]
    return PairScores(
        pair_file=pair_file,
        mirrored=mirrored,
        verification=[verify(own, pair_file.same) for own in similar],
        flips=[flips(similar[0], own, threshold) for own in similar[1:]],
        similarities=similar,
    )
