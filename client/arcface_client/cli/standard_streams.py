"""Standard output whose errors say that they are its own, and a standard error that is always there."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeGuard

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT: Final = "standard output"
"""What an error of writing to it has for a file name."""


class _Stdout(io.FileIO):
    """Standard output; Python's own names no file in its errors, and complains again at exit.

    Attributes:
        failure: Why it could not be written; whatever comes after that is dropped.
    """

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        if self.failure is not None:
            return memoryview(data).nbytes
        try:
            written: int | None = super().write(data)
            if written is None:  # a pipe that is full and does not block
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            error.filename = STDOUT
            self.failure = error
            raise
        return written


@contextmanager
def standard_streams() -> Iterator[None]:
    """Let the block write to standard output with errors that name it, also those that nobody looked at.

    Standard error is opened to nowhere where the caller closed it, lest print() and bars fail or write to
    another file.

    Raises:
        OSError: Standard output cannot be written, and nothing else went wrong; its ``filename`` is
            ``STDOUT``.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    before = sys.stdout
    if not _is_pythons_own(before):
        yield
        if before is not None:  # closed by the caller
            before.flush()
        return
    before.flush()
    raw = _Stdout(before.fileno(), "w", closefd=False)
    stdout = sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.line_buffering or before.write_through,  # as PYTHONUNBUFFERED wants it
    )
    is_alone = False
    try:
        yield
        is_alone = True
    except SystemExit:
        is_alone = True  # argparse passes over what could not be written of its help
        raise
    finally:
        with suppress(OSError):  # it is noted
            stdout.flush()
        sys.stdout = before
        if is_alone and raw.failure is not None:
            raise raw.failure


def _is_pythons_own(stdout: object) -> TypeGuard[io.TextIOWrapper]:
    """Whether it is what Python began with, on a file; a terminal of Windows is none."""
    return (
        isinstance(stdout, io.TextIOWrapper)
        and stdout is sys.__stdout__
        and isinstance(getattr(stdout.buffer, "raw", stdout.buffer), io.FileIO)
    )
