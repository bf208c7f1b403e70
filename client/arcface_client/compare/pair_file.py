"""InsightFace's verification sets (``lfw.bin``): a pickle, read without running anything that is in it.

A set is a pickled tuple of encoded images, two for each pair, and of whether each pair is one person. Images
are bytes, ``str`` where Python 2 wrote them, or numpy arrays of bytes as OpenCV's ``imencode`` gives them;
truths are booleans, 0 and 1, or numpy's. To load a pickle is to call what it names, so here the few names
that such files hold mean stand-ins, which do no more than remember what they were given, and any other name
is an error.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import PairFileError
from .verification import Same


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
    encoded = [_bytes(path, index, image) for index, image in enumerate(images)]
    same = np.array([_truth(path, index, truth) for index, truth in enumerate(truths)], bool)
    if not encoded or len(encoded) != 2 * len(same):
        raise PairFileError(
            f"{path} holds {len(encoded)} images for {len(same)} pairs; expected two images a pair, and "
            "at least one pair."
        )
    return PairFile(path, encoded, same)


class _Dtype:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which bytes have not."""


class _Array:
    """Stands in for ``numpy.ndarray``: a data type and bytes."""

    def __init__(self, dtype: object = None, raw: object = b"") -> None:
        self.dtype, self.raw = dtype, raw

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 5:
            _, _, self.dtype, _, self.raw = state

    def values(self, *names: str) -> npt.NDArray[Any] | None:
        """Its values, flat, if they are of one of these data types."""
        if not (isinstance(self.dtype, _Dtype) and self.dtype.name in names and isinstance(self.raw, _BYTES)):
            return None
        dtype = np.dtype(self.dtype.name)
        return np.frombuffer(self.raw, dtype) if len(self.raw) % dtype.itemsize == 0 else None


_BYTES: Final = (bytes, bytearray)
_TRUTHS: Final = ("b1", "u1", "i1", "i4", "i8")


def _new_array(*_: object) -> _Array:
    return _Array()


def _array_from_buffer(raw: object, dtype: object, *_: object) -> _Array:
    return _Array(dtype, raw)


def _scalar(dtype: object, raw: object) -> _Array:
    return _Array(dtype, raw)


def _encoded(text: object, encoding: object = None) -> bytes:
    # How Python 3 writes bytes in the protocols that Python 2 reads.
    if isinstance(text, str) and encoding in ("latin1", b"latin1"):
        return text.encode("latin-1")
    raise pickle.UnpicklingError("an encoding that is not latin1")


_NUMPY: Final[Mapping[str, Callable[..., Any]]] = {
    "multiarray._reconstruct": _new_array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _array_from_buffer,
}

_STAND_INS: Final[Mapping[str, Callable[..., Any]]] = {
    "_codecs.encode": _encoded,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.core.{name}": stand_in for name, stand_in in _NUMPY.items()},
    **{f"numpy._core.{name}": stand_in for name, stand_in in _NUMPY.items()},  # since numpy 2
}


_OPERATIONS: Final = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}


class _CodeFound(pickle.UnpicklingError):
    """The pickle names something that is no data."""


class _Unpickler(pickle.Unpickler):
    """Builds what a pickle describes, and knows nothing to call but the stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _STAND_INS:
            raise _CodeFound(full)
        return _STAND_INS[full]


def _load(path: Path, content: bytes) -> object:
    try:
        _check_memo(content)
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _CodeFound as error:
        raise PairFileError(
            f"{path} holds code: its pickle names {error}, which a set of pairs does not need. Nothing of it "
            "was run; do not load this file with Python's pickle."
        ) from error
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:  # what pickle raises for bytes that are no pickle
        raise PairFileError(
            f"{path} cannot be read as a pickle ({error}); expected a set such as lfw.bin, whole."
        ) from error


def _check_memo(content: bytes) -> None:
    """Refuse a place in the memo beyond what the pickle can fill: Python would reserve memory up to it."""
    for count, (name, argument) in enumerate(_operations(io.BytesIO(content))):
        if "PUT" in name and argument > count:
            raise pickle.UnpicklingError(f"place {argument} of a memo with at most {count}")


def _operations(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """As ``pickletools.genops``, which takes the bytes of Python 2's text pickles for ASCII."""
    while code := stream.read(1):
        operation = _OPERATIONS.get(code)
        if operation is None:
            raise pickle.UnpicklingError(f"byte {code!r} is no operation")
        if operation.name == "STRING":
            yield operation.name, stream.readline()
        else:
            yield operation.name, None if operation.arg is None else operation.arg.reader(stream)
        if operation.name == "STOP":
            return
    raise EOFError("it ends too early")


def _parts(path: Path, content: object) -> tuple[Sequence[object], Sequence[object]]:
    if isinstance(content, (tuple, list)) and len(content) == 2:
        images, truths = content
        if isinstance(truths, _Array):
            values = truths.values(*_TRUTHS)
            truths = None if values is None else values.tolist()
        if isinstance(images, (list, tuple)) and isinstance(truths, (list, tuple)):
            return images, truths
    raise PairFileError(
        f"{path} is a pickle of something else; expected (images, whether each pair is the same), as lfw.bin."
    )


def _bytes(path: Path, index: int, image: object) -> bytes:
    if isinstance(image, _Array) and (pixels := image.values("u1")) is not None:
        return pixels.tobytes()
    if isinstance(image, _BYTES):
        return bytes(image)
    kind = "an array of another type" if isinstance(image, _Array) else type(image).__name__
    raise PairFileError(f"{path}: image {index} is {kind}; expected the bytes of a JPEG or PNG.")


def _truth(path: Path, index: int, truth: object) -> bool:
    if isinstance(truth, _Array) and (values := truth.values(*_TRUTHS)) is not None and len(values) == 1:
        truth = values.item()
    if isinstance(truth, int) and truth in (0, 1):
        return bool(truth)
    raise PairFileError(f"{path}: whether pair {index} is the same is {truth!r:.40}; expected true or false.")
