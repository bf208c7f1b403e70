"""InsightFace's verification sets (``lfw.bin``): a pickle, read without running anything that is in it.

A set is a pickled tuple of encoded images, two for each pair, and of whether each pair is one person. Images
are bytes, ``str`` where Python 2 wrote them, or numpy arrays of bytes as OpenCV's ``imencode`` gives them;
truths are booleans, 0 and 1, or numpy's. To load a pickle is to call what it names, so here the few names
that such files hold mean stand-ins (see ``pair_pickle``), and any other name is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ..errors import PairFileError
from .pair_pickle import PICKLE_ERRORS, Array, CodeFound, NoData, RawBytes, load_pickle
from .verification import Same

MAX_PAIRS: Final = 100_000
"""The largest set that is read; the usual ones have 6,000 to 7,000 pairs."""

_TRUTHS: Final = ("b1", "u1", "i1", "i4", "i8")


@dataclass(frozen=True)
class PairFile:
    """A verification set.

    Attributes:
        path: Where it was read from.
        images: Encoded images; those of pair i are 2i and 2i + 1.
        same: Whether each pair is one person, bool [pairs].
    """

    path: Path
    images: Sequence[bytes]
    same: Same


def read_pair_file(path: Path) -> PairFile:
    """Read a verification set.

    Raises:
        PairFileError: There is no such file, it is truncated or no pickle, it holds code, or it is no set
            of pairs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PairFileError(f"{path} cannot be read: {error.strerror}.") from error
    images, truths = _parts(path, _load(path, content))
    if len(truths) > MAX_PAIRS:
        raise PairFileError(f"{path} holds {len(truths):,} pairs; expected at most {MAX_PAIRS:,}.")
    raw = RawBytes()
    encoded = [_bytes(path, index, image, raw) for index, image in enumerate(images)]
    same = np.array([_truth(path, index, truth, raw) for index, truth in enumerate(truths)], bool)
    if not encoded or len(encoded) != 2 * len(same):
        raise PairFileError(
            f"{path} holds {len(encoded)} images for {len(same)} pairs; expected two images a pair, and "
            "at least one pair."
        )
    return PairFile(path, encoded, same)


def _load(path: Path, content: bytes) -> object:
    try:
        return load_pickle(content)
    except CodeFound as error:
        raise PairFileError(
            f"{path} holds code: its pickle names {error}, which a set of pairs does not need. Nothing of it "
            "was run; do not load this file with Python's pickle."
        ) from error
    except NoData as error:
        raise _something_else(path) from error
    except PICKLE_ERRORS as error:
        why = " ".join(str(error).split())
        raise PairFileError(
            f"{path} cannot be read as a pickle ({why}); expected a set such as lfw.bin, whole."
        ) from error


def _parts(path: Path, content: object) -> tuple[Sequence[object], Sequence[object]]:
    if isinstance(content, (tuple, list)) and len(content) == 2:
        images, truths = content
        if isinstance(truths, Array):
            values = RawBytes().values(truths, *_TRUTHS)
            truths = None if values is None else values.tolist()
        if isinstance(images, (list, tuple)) and isinstance(truths, (list, tuple)):
            return images, truths
    raise _something_else(path)


def _something_else(path: Path) -> PairFileError:
    return PairFileError(
        f"{path} is a pickle of something else; expected (images, whether each pair is the same), as lfw.bin."
    )


def _bytes(path: Path, index: int, image: object, raw: RawBytes) -> bytes:
    found = raw.of_pixels(image) if isinstance(image, Array) else raw.of(image)
    if found is None:
        kind = "an array of another type" if isinstance(image, Array) else type(image).__name__
        raise PairFileError(f"{path}: image {index} is {kind}; expected the bytes of a JPEG or PNG.")
    return found


def _truth(path: Path, index: int, truth: object, raw: RawBytes) -> bool:
    if isinstance(truth, Array) and (values := raw.values(truth, *_TRUTHS)) is not None and len(values) == 1:
        truth = values.item()
    if isinstance(truth, int) and truth in (0, 1):
        return bool(truth)
    # Anything but a small number may be as large, or as deep, as a file can make it.
    said = truth if isinstance(truth, int) and truth.bit_length() <= 64 else type(truth).__name__
    raise PairFileError(f"{path}: whether pair {index} is the same is {said}; expected true or false.")
