"""What the three command lines share: exit codes, one-line errors, how a command ends."""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import logging
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..errors import ArcFaceError, MissingExtraError
from .standard_streams import STDOUT, standard_streams

DONE = 0
FAILED = 1  # argparse ends wrong usage with 2
INTERRUPTED = 130  # what a shell gives for a program that Ctrl-C ended


def run(
    prog: str, make_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None = None
) -> int:
    """Parse the arguments, run the command that they name, and return the exit code.

    Each sub-command sets ``run``, a function from the parsed arguments to an exit code; it finds what was
    typed in their ``command_line``. An error that was raised on purpose becomes one line on standard
    error and exit code 1; wrong usage ends in argparse with code 2; a full disk and its like are one line
    too; anything else is a bug and keeps its traceback. SIGTERM and a closed terminal end a command as
    Ctrl-C does: it tidies up first.

    Args:
        prog: Name of the command.
        make_parser: Makes its parser; what it imports may be missing from a small installation.
        argv: The arguments; None takes the process's own.
    """
    interruptions: list[int] = []
    try:
        with _interrupting_signals(interruptions), standard_streams():
            arguments = make_parser().parse_args(argv)
            arguments.command_line = shlex.join([prog, *(sys.argv[1:] if argv is None else argv)])
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            return int(arguments.run(arguments))
    except (KeyboardInterrupt, ArcFaceError, ImportError) as error:
        # An extension that is interrupted while it is imported makes an ImportError of it.
        if interruptions and isinstance(error, (KeyboardInterrupt, ImportError, MissingExtraError)):
            print(f"{prog}: interrupted", file=sys.stderr)
            return INTERRUPTED
        if not isinstance(error, ArcFaceError):
            raise
        print(f"{prog}: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename == STDOUT:
            return FAILED  # its reader, `| head`, had enough
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC and not where:
            where = f" (perhaps of {tempfile.gettempdir()}; TMPDIR names another folder)"
        print(f"{prog}: {error.strerror or error}{where}", file=sys.stderr)
        return FAILED


@contextmanager
def _interrupting_signals(interruptions: list[int]) -> Iterator[None]:
    """Let every usual way to end a program raise KeyboardInterrupt, and note its signal."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread alone
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        interruptions.append(number)
        raise KeyboardInterrupt

    # SIGINT is among them because a shell starts background jobs with it ignored.
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    endings = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks SIGHUP
    before = [signal.signal(ending, interrupt) for ending in endings]
    try:
        yield
    finally:
        for ending, handler in zip(endings, before, strict=True):
            signal.signal(ending, handler)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``."""
    try:
        version = importlib.metadata.version("arcface-triton")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        version = "(not installed)"
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")


def utf8_path(text: str) -> Path:
    """Read an argument as a path that goes into a record, and to libraries that take UTF-8 alone.

    Raises:
        argparse.ArgumentTypeError: Its bytes are no UTF-8, or it is empty, as an unset variable is.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty path; give a name")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8; give another name") from error
    return Path(text)


def printable(text: str) -> str:
    """A text in which control characters, as a file's name may hold, are written as in Python."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
