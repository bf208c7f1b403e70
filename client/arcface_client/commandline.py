"""What the three command lines share: exit codes, one-line errors, progress bars."""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import io
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ArcFaceError, MissingExtraError

if TYPE_CHECKING:
    from tqdm import tqdm

_log = logging.getLogger(__name__)

T = TypeVar("T")

DONE = 0
FAILED = 1  # argparse ends wrong usage with 2
INTERRUPTED = 130  # what a shell gives for a program that Ctrl-C ended

_REFRESH_S = 1.0


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
    _prepare_streams()
    try:
        with _interrupting_signals(interruptions):
            arguments = make_parser().parse_args(argv)
            arguments.command_line = shlex.join([prog, *(sys.argv[1:] if argv is None else argv)])
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            code = int(arguments.run(arguments))
            if sys.stdout is not None:  # closed by the caller
                sys.stdout.flush()  # here, where a reader that is gone can still be handled
            return code
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
        if not _stdout_fails():
            where = f" ({error.filename})" if error.filename else ""
            if error.errno == errno.ENOSPC and not where:
                where = f" (perhaps of {tempfile.gettempdir()}; TMPDIR names another folder)"
            print(f"{prog}: {error.strerror or error}{where}", file=sys.stderr)
        elif not isinstance(error, BrokenPipeError):  # such a reader, `| head`, had enough
            print(f"{prog}: {error.strerror or error} (standard output)", file=sys.stderr)
        return FAILED


def _prepare_streams() -> None:
    """Open standard error to nowhere where the caller closed it, lest print() and bars fail or go elsewhere.

    And give lines a buffer where ``PYTHONUNBUFFERED`` took it, for ``_stdout_fails`` to find the rest.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper) and isinstance(stdout.buffer, io.RawIOBase):
        sys.stdout = open(  # noqa: SIM115
            stdout.fileno(), "w", buffering=1, encoding=stdout.encoding, errors=stdout.errors, closefd=False
        )


def _stdout_fails() -> bool:
    """Whether standard output cannot be written to; if so, keep Python from complaining again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # what could not be written is still there, and fails again
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


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
        argparse.ArgumentTypeError: Its bytes are no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8; give another name") from error
    return Path(text)


def printable(text: str) -> str:
    """A text in which control characters, as a file's name may hold, are written as in Python."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def progress(items: Iterable[T], *, total: int | None = None, unit: str) -> Iterator[T]:
    """Yield the items under a progress bar on standard error; without a terminal or tqdm, just yield."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from items
        return
    yield from tqdm(items, total=total, unit=unit, disable=None, leave=False)


@contextmanager
def transfer(name: str, size_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show bytes that move under a progress bar on standard error; without a terminal or tqdm, show nothing.

    Yields:
        What is to be told how many bytes have moved since it was told last.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    bar = tqdm(desc=name, total=size_bytes, unit="B", unit_scale=True, disable=None, leave=False)
    with bar:
        yield bar.update


Tell = Callable[[str, float | None], None]
"""Is told the stage of something long, and what part of it is done, 0 to 1; None where nobody knows."""


@contextmanager
def stages(name: str) -> Iterator[Tell]:
    """Show the stage of something long, how much is done, and the time, under a bar on standard error.

    Without a terminal or tqdm, log each new stage, and when it began.
    """
    try:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm
    except ImportError:
        yield _logging_stages(name)
        return
    layout = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"
    bar = tqdm(desc=name, total=1.0, bar_format=layout, disable=None, leave=False)
    if bar.disable:
        yield _logging_stages(name)
        return
    lock = tqdm.get_lock()  # type: ignore[no-untyped-call]
    with bar, logging_redirect_tqdm(), _refreshing(bar, lock):  # log lines go above the bar

        def tell(stage: str, done: float | None) -> None:
            with lock:  # Ctrl-C in tqdm's own locking would leave it taken
                bar.n = done or 0.0
                bar.set_postfix_str(stage, refresh=False)
                bar.refresh(nolock=True)

        yield tell


@contextmanager
def _refreshing(bar: tqdm[Any], lock: AbstractContextManager[object]) -> Iterator[None]:
    """Draw a bar anew each second, so that its time goes on during a stage that is told once."""
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(_REFRESH_S):
            # A terminal that cannot be written to is an error where a stage is told.
            with suppress(OSError), lock:
                bar.refresh(nolock=True)

    thread = threading.Thread(target=refresh, name="progress-refresh", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # Not without end: Ctrl-C in tqdm, as it draws a bar of bytes, leaves its lock taken. A closed bar is
        # not drawn, whoever gets the lock.
        thread.join(_REFRESH_S)


def _logging_stages(name: str) -> Tell:
    started, told = time.monotonic(), set[str]()

    def tell(stage: str, done: float | None) -> None:
        nonlocal told
        if stage not in told:
            # The phases of something whose part is known come again and again.
            told = {stage} if done is None else told | {stage}
            _log.info("%s: %s (after %.0f s)", name, stage, time.monotonic() - started)

    return tell
