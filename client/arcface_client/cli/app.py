"""``arcface-client``: embed image files, look at a server, compare its models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .commandline import add_version, run
from .compare import add_compare
from .embed import add_embed
from .status import add_status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    return run("arcface-client", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arcface-client",
        description="Embed face crops through a Triton server that holds an ArcFace model repository.",
        epilog="Settings come from the flags, then ARCFACE_* variables, then config/pipeline/embedding.yaml.",
    )
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_embed(commands)
    add_status(commands)
    add_compare(commands)
    return parser
