"""How the three commands begin. Imports nothing: what comes before it meets Ctrl-C with a traceback."""

from __future__ import annotations


def run_command(module: str, *, extra: str | None = None) -> int:
    """Import a command line and run it; returns the exit code.

    A command's imports take a second, and leave nothing to tidy up. So Ctrl-C ends the process there as it
    ends any program, until ``commandline.run`` takes it over. KeyboardInterrupt would be a traceback, or get
    lost: in a callback of Python's own, or in an extension that takes it for a failure.

    Args:
        module: The module with the command line's ``main``.
        extra: The extra that brings what it imports; a package that is missing is then one line.
    """
    try:
        import signal  # takes ten milliseconds itself

        try:
            before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        except ValueError:  # in another thread than the main one, signals are the program's that calls
            before = None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        return _run(module, extra)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _run(module: str, extra: str | None) -> int:
    import sys
    from importlib import import_module

    from ..runtimes.base import switch_off_telemetry

    switch_off_telemetry()
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        command = module.partition(".")[0].replace("_", "-")
        if error.name == "fcntl":  # comes with Python itself, but not on Windows
            sys.stderr.write(f"{command} needs Linux or macOS: this system has no file locks by fcntl\n")
            return 1
        sys.stderr.write(f"{command} needs the package {error.name}: pip install 'arcface-triton[{extra}]'\n")
        return 1
    return int(main())
