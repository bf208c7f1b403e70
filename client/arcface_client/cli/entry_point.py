"""Entry point of the three commands: imports a command line, and says what a small installation lacks."""

from __future__ import annotations

import sys
from importlib import import_module

from ..runtimes.base import switch_off_telemetry


def start(module: str, *, extra: str) -> int:
    """Import a command line and run its ``main``.

    Args:
        module: The module, for example "arcface_client.cli.app".
        extra: The extras that bring what it imports, for example "builder,cli".

    Returns:
        The exit code; 1 with one line on standard error if a package is missing.
    """
    switch_off_telemetry()
    try:
        main = import_module(module).main
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        command = module.partition(".")[0].replace("_", "-")
        missing = error.name or ""
        if missing.startswith("arcface_"):
            raise
        if missing in sys.stdlib_module_names:  # fcntl, on Windows
            sys.stderr.write(f"{command} needs Linux or macOS: Python has no module {missing} here\n")
        else:
            sys.stderr.write(
                f"{command} needs the package {missing}: pip install 'arcface-triton[{extra}]'\n"
            )
        return 1
    return int(main())
