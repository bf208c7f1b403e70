"""``arcface-server``: run a Triton server on this machine, and measure one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from arcface_client.cli.commandline import add_version, run

from .commands.perf import add_perf
from .commands.run import add_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    return run("arcface-server", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arcface-server",
        description="Run the real Triton Inference Server without its container, and measure a server.",
    )
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    add_perf(commands)
    return parser
