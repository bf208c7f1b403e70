"""What the three command lines share: how a command runs and ends, its progress, its tables."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Final, TypeVar, cast, get_type_hints

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from ..contract import Progress
from ..errors import ArcFaceError, InputError
from ..observability.versions import package_versions

S = TypeVar("S")
T = TypeVar("T")

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130  # what a shell gives for a program that Ctrl-C ended

_LINE_EVERY_S: Final = 60.0  # of a stage that goes on, where there is no terminal

UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
"""Wrong usage that is not of one parameter; Typer does not export the name."""

_stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)


class Interrupted(Exception):
    """Ctrl-C ended a command; the message says what is left of its work."""


def new_app(help: str, *, epilog: str) -> typer.Typer:
    """Make a command line of several commands, with ``--version``.

    Args:
        help: What it is for.
        epilog: Examples and exit codes; see ``examples``.
    """
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback(help=help, epilog=epilog)
    def options(
        version: Annotated[
            bool,
            typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit."),
        ] = False,
    ) -> None:
        pass

    return app


def _version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        version = package_versions(["arcface-triton"]).get("arcface-triton", "(not installed)")
        print(f"{context.find_root().info_name} {version}")  # not installed: run from a checkout
        raise typer.Exit


def with_shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take a dataclass of options as its first argument; each field becomes a flag."""
    # Not get_type_hints: Python 3.10's hides the annotation of an option whose default is None.
    first, *own = signature(command, eval_str=True).parameters.values()
    shared = first.annotation
    types = get_type_hints(shared, include_extras=True)

    @wraps(command)
    def call(**given: Any) -> Any:
        return command(shared(**{name: given.pop(name) for name in types}), **given)

    parameters = [
        parameter.replace(
            kind=Parameter.KEYWORD_ONLY, annotation=types.get(parameter.name, parameter.annotation)
        )
        for parameter in (*signature(shared).parameters.values(), *own)
    ]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return call


def examples(*lines: str, exit_codes: str = "0 done, 1 failed", interrupted: str = "") -> str:
    """Make an epilog that ``--help`` shows line by line; older Typers join lines without a blank one."""
    codes = f"Exit codes: {exit_codes}, 2 wrong usage, 130 interrupted{interrupted}"
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines), codes])


def run(app: typer.Typer, prog: str, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command that they name, and return the exit code.

    A command returns its exit code, or None for 0. It finds what was typed in ``typer.Context.obj``. An
    ``ArcFaceError`` and an error of the system become one line on standard error and exit code 1; anything
    else is a bug and keeps its traceback. SIGTERM ends a command as Ctrl-C does, so that it can tidy up.

    Args:
        app: The command line.
        prog: Its name.
        argv: The arguments; None takes the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_LogHandler()])
    typed = shlex.join([prog, *arguments])
    left = ""
    if threading.current_thread() is threading.main_thread():  # no other one may set a handler
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command = typer.main.get_command(app)
        _tidy_help(command)
        code = int(command.main(args=arguments, prog_name=prog, standalone_mode=False, obj=typed) or DONE)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Interrupted as interrupted:
        code, left = INTERRUPTED, f"; {interrupted}"
    except SystemExit as ended:  # shell completion, or a reader such as `head` that has gone
        code = int(ended.code or DONE)
    except BrokenPipeError:
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except UsageError as error:
        # Typer passes pydantic's words on.
        error.message = error.message.removeprefix("Value error, ").replace("Input should be", "must be")
        error.show()
        code = WRONG_USAGE
    except ArcFaceError as error:
        say(f"{prog}: {error}", style="red")
        code = FAILED
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        say(f"{prog}: {error.strerror or error}{where}", style="red")
        code = FAILED
    if code == INTERRUPTED:
        say(f"{prog}: interrupted{left}")
    return code


def _tidy_help(command: Any) -> None:
    """Let a help text wrap where the terminal wraps it, and show flags without a type."""
    paragraphs = (command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for option in (*command.params, command.get_help_option(typer.Context(command))):
        if getattr(option, "is_flag", False):
            option.metavar = ""
    for one in getattr(command, "commands", {}).values():
        _tidy_help(one)


class _LogHandler(logging.Handler):
    """Writes log lines to standard error, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            say(f"Warning: {self.format(record)}", style="yellow")
        else:
            say(self.format(record))


def say(text: str, *, style: str | None = None) -> None:
    """Print a line on standard error, unbroken; the style is for a terminal."""
    _stderr.print(text, style=style, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a JSON object for scripts."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output: fitted to a terminal, else with every cell on one line."""
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console.print(table)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show on standard error how far a command is.

    Args:
        title: What is under way.

    Yields:
        The callback. On a terminal it draws a bar; elsewhere it writes a line when a stage begins,
        and one every minute.
    """
    if not _stderr.is_terminal:
        yield _lines(title)
        return
    with _bars(TaskProgressColumn(), TimeElapsedColumn()) as bars:
        task = bars.add_task(title, total=None)

        def show(stage: str, done: float | None) -> None:
            total = None if done is None else 1.0
            bars.update(task, description=f"{title}: {stage}", total=total, completed=done or 0.0)

        yield show


def _bars(*columns: ProgressColumn) -> Bars:
    begin = SpinnerColumn(), TextColumn("{task.description}"), BarColumn()
    return Bars(*begin, *columns, console=_stderr, transient=True)


def _lines(title: str) -> Progress:
    started = last = time.monotonic()
    told: set[str] = set()

    def show(stage: str, done: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if stage in told and now < last + _LINE_EVERY_S:
            return
        told.add(stage)
        last = now
        share = f", {done:.0%}" if done else ""
        say(f"{title}: {stage}{share} (after {now - started:.0f} s)")

    return show


@contextmanager
def rate_of(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show on standard error how many crops are done, at what rate, and how long it still takes.

    Args:
        title: What is under way.

    Yields:
        What to call with the number done, and the total or None. On a terminal it draws a bar; elsewhere it
        writes a line at first, and one every minute.
    """
    if not _stderr.is_terminal:
        yield _rate_lines(title)
        return
    with _bars(MofNCompleteColumn(), _Rate(), TimeRemainingColumn()) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def _rate_lines(title: str) -> Callable[[int, int | None], None]:
    started = time.monotonic()
    last, before = -math.inf, 0

    def show(done: int, total: int | None) -> None:
        nonlocal last, before
        now = time.monotonic()
        if now < last + _LINE_EVERY_S:
            return
        rate = (done - before) / (now - max(last, started)) if now > started else 0.0
        of = "" if total is None else f" of {total:,}"
        left = f", {(total - done) / rate:,.0f} s left" if total and rate and before else ""
        said = f" ({rate:,.0f}/s{left})" if before else ""
        say(f"{title}: {done:,}{of} crops{said}")
        last, before = now, done

    return show


def checked(parse: Callable[[S], T]) -> Callable[[S], T]:
    """Let a value that a parser refuses be wrong usage."""

    def parsed(text: S) -> T:
        try:
            return parse(text)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error

    return parsed


def whole_numbers(text: str) -> tuple[int, ...]:
    """Read a list of numbers from 1 up, for example ``1,8,32``; raises typer.BadParameter."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text, re.ASCII):
        raise typer.BadParameter(f"{text!r} is not a list of numbers from 1 up; expected for example 1,8,32")
    return tuple(map(int, text.split(",")))
