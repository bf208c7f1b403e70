"""The pickle of a verification set, built from stand-ins that do nothing.

To load a pickle is to call what it names, and to set what it likes on what that gives. So the few names that
a set needs mean stand-ins: classes of which an instance only remembers what it was given. What they remember
is turned into bytes afterwards, once for each object however often the pickle refers to it, so that a small
file cannot become a large memory.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

PICKLE_ERRORS: Final = (
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
"""What pickle raises for bytes that are no pickle."""


class CodeFound(Exception):
    """The pickle names something that is no data."""


class NoData(Exception):
    """The pickle holds what no set of pairs has."""


def load_pickle(content: bytes) -> object:
    """Build what a pickle describes, of Python's own values and stand-ins.

    Raises:
        CodeFound: It names something that no set of pairs needs.
        NoData: It holds dictionaries or sets.
        PICKLE_ERRORS: It is no pickle.
    """
    _check_operations(content)
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


class _StandIn:
    """Something that a pickle may make; attributes have defaults, since it may leave out ``__init__``."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Take nothing."""


class Dtype(_StandIn):
    """Stands in for ``numpy.dtype``; byte order and the like, which bytes have not, is passed over."""

    name: object = ""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name


class Array(_StandIn):
    """Stands in for ``numpy.ndarray``, and for a number of numpy's: a data type and bytes."""

    dtype: object = None
    raw: object = b""

    def __init__(self, dtype: object = None, raw: object = b"", *_: object) -> None:
        self.dtype, self.raw = dtype, raw

    def __setstate__(self, state: object) -> None:
        """Take what numpy gives an array that was made empty."""
        if isinstance(state, tuple) and len(state) == 5:
            _, _, self.dtype, _, self.raw = state


class _NewArray(Array):
    """Stands in for ``_reconstruct``, which makes an empty array."""

    def __init__(self, *_: object) -> None:
        super().__init__()


class _ArrayFromBuffer(Array):
    """Stands in for ``_frombuffer``."""

    def __init__(self, raw: object = b"", dtype: object = None, *_: object) -> None:
        super().__init__(dtype, raw)


class Encoded(_StandIn):
    """Stands in for ``_codecs.encode``: how Python 3 writes bytes in the protocols that Python 2 reads."""

    text: object = None
    encoding: object = None

    def __init__(self, text: object = None, encoding: object = None, *_: object) -> None:
        self.text, self.encoding = text, encoding


class RawBytes:
    """The bytes of what a pickle holds, made once for each object. The pickle's objects must outlive it."""

    def __init__(self) -> None:
        self._made: dict[int, bytes | None] = {}

    def of(self, value: object) -> bytes | None:
        """The bytes that a value stands for; None if it stands for none."""
        if isinstance(value, bytes):
            return value
        source = value.text if isinstance(value, Encoded) and _is_latin1(value.encoding) else value
        if id(source) not in self._made:
            self._made[id(source)] = _made_from(source, encoded=source is not value)
        return self._made[id(source)]

    def of_pixels(self, array: Array) -> bytes | None:
        """The bytes of an array of bytes; None if it is of another data type."""
        return self.of(array.raw) if _dtype(array) == "u1" else None

    def values(self, array: Array, *dtypes: str) -> npt.NDArray[Any] | None:
        """The values of an array, flat, if they are of one of these data types."""
        name, raw = _dtype(array), self.of(array.raw)
        if name not in dtypes or raw is None or len(raw) % np.dtype(name).itemsize:
            return None
        return np.frombuffer(raw, name)


def _made_from(source: object, *, encoded: bool) -> bytes | None:
    if encoded and isinstance(source, str):
        try:
            return source.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return bytes(source) if isinstance(source, bytearray) else None


def _is_latin1(encoding: object) -> bool:
    return isinstance(encoding, (str, bytes)) and encoding in ("latin1", b"latin1")


def _dtype(array: Array) -> str | None:
    name = array.dtype.name if isinstance(array.dtype, Dtype) else None
    if isinstance(name, bytes):  # of Python 2
        name = name[:8].decode("latin-1")
    return name if isinstance(name, str) else None


_NUMPY: Final[Mapping[str, type[_StandIn]]] = {
    "multiarray._reconstruct": _NewArray,
    "multiarray.scalar": Array,
    "numeric._frombuffer": _ArrayFromBuffer,
}

_STAND_INS: Final[Mapping[str, type[_StandIn]]] = {
    "_codecs.encode": Encoded,
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.core.{name}": stand_in for name, stand_in in _NUMPY.items()},
    **{f"numpy._core.{name}": stand_in for name, stand_in in _NUMPY.items()},  # since numpy 2
}


class _Unpickler(pickle.Unpickler):
    """Knows nothing to call but the stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _STAND_INS:
            raise CodeFound(full)
        return _STAND_INS[full]


_OPERATIONS: Final = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}

_HASHING: Final = frozenset({"SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"})
"""To hash a tuple that is nested deeply enough overflows the interpreter's stack."""


def _check_operations(content: bytes) -> None:
    """Refuse what would do harm before anything is built."""
    for count, (name, argument) in enumerate(_operations(io.BytesIO(content))):
        if "PUT" in name and argument > count:
            # Python would reserve memory up to that place.
            raise pickle.UnpicklingError(f"place {argument} of a memo with at most {count}")
        if name in _HASHING:
            raise NoData(name)


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
