"""The command line: ``arcface-builder inspect``, ``build``, ``compile`` and ``engines``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from arcface_client.cli import commandline

from .build import add_build
from .compile import add_compile
from .engines import add_engines
from .inspect import add_inspect

_DESCRIPTION = """\
Build a Triton model repository from an ArcFace model, and prove that it gives the same embeddings.
"""

_EXAMPLES = """\
examples:
  arcface-builder inspect w600k_r50.onnx
      what the file is, what its callers must do, what a build would mend
  arcface-builder build --name arcface_r50 --onnx-path w600k_r50.onnx
      the next version of model_repository/arcface_r50_onnx
  arcface-builder build --name demo --synthetic r18
      random weights, to try everything without a download; it recognises no one

exit codes: 0 done, 1 failed (one line says why, nothing was published), 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for talkative in ("onnx_ir", "botocore"):  # they tell all that they remove, and where credentials are
        logging.getLogger(talkative).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns with a traceback of what is told anyway
    return commandline.run("arcface-builder", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "arcface-builder",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commandline.add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_inspect, add_build, add_compile, add_engines):
        add(commands)
    return parser
