"""``arcface-client``: embed image files, and look at a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .commandline import add_version, run


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

    embed = commands.add_parser(
        "embed",
        help="embed image files into an .npz",
        description="Embed aligned 112x112 face crops from files and folders into one .npz file, which holds "
        "`embeddings` (float32 [N, 512], unit rows) and `paths`. A file that is no image is reported and "
        "skipped, and the exit code is 1.",
        epilog="example: arcface-client embed crops/ --model arcface_r100_onnx --output embeddings.npz",
    )
    embed.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image file, or folder to search")
    embed.add_argument("--output", required=True, type=Path, metavar="FILE", help="the .npz file to write")
    embed.add_argument(
        "--resize", action="store_true", help="scale crops of another size instead of refusing"
    )
    embed.add_argument("--json", action="store_true", help="report as JSON")
    embed.add_argument("--model", metavar="NAME", help="model to use (default: triton.model of the settings)")
    embed.add_argument("--version", type=int, metavar="N", help="its version (default: the newest one ready)")
    embed.set_defaults(run=_embed)

    status = commands.add_parser(
        "status",
        help="show a server's models, and why one is not ready",
        description="Show the server, its models and versions, and why one is not ready. "
        "The exit code is 1 when no server answers.",
        epilog="example: arcface-client status --url localhost:8001 --json",
    )
    status.add_argument("--json", action="store_true", help="report as JSON")
    status.set_defaults(run=_status)

    for command in (embed, status):
        command.add_argument("--url", metavar="HOST:PORT", help="gRPC address of the server")
        command.add_argument("--timeout-s", type=float, metavar="S", help="seconds that one request may take")
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="settings, as config/pipeline/embedding.yaml"
        )
        command.add_argument("--root-certificates", type=Path, metavar="PEM", help="use TLS, trusting these")
        command.add_argument(
            "--private-key", type=Path, metavar="PEM", help="the client's key, for mutual TLS"
        )
        command.add_argument("--certificate-chain", type=Path, metavar="PEM", help="its certificate")
    return parser


def _embed(arguments: argparse.Namespace) -> int:
    from .commands import embed  # brings gRPC, for which `--help` need not wait

    return embed(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from .commands import status

    return status(arguments)


if __name__ == "__main__":
    sys.exit(main())
