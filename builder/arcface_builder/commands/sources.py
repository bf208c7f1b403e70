"""The arguments that name a source model."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..insightface_pack import DEFAULT_ROOT
from ..iresnet import BLOCKS
from ..normalisation import Normalisation
from ..sources import Checkpoint, InsightFacePack, OnnxFile, Source, Synthetic


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("source, exactly one of")
    sources = group.add_mutually_exclusive_group(required=True)
    sources.add_argument("--onnx-path", type=Path, metavar="FILE", help="an ONNX file; it is not changed")
    sources.add_argument("--insightface-pack", metavar="PACK", help="InsightFace's pack, e.g. buffalo_l")
    sources.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="arcface_torch state dict, .pth (needs torch) or .safetensors",
    )
    sources.add_argument(
        "--synthetic",
        choices=BLOCKS,
        help="seeded random weights: computes like the real one, recognises nobody",
    )
    details = parser.add_argument_group("details of the source")
    details.add_argument(
        "--normalisation",
        type=_normalisation,
        metavar="MEAN,STD",
        help="with --onnx-path: what its callers do to pixels 0 to 255, where the file leaves it open "
        "(default: by its SHA-256, else by what the graph computes)",
    )
    details.add_argument(
        "--insightface-root", type=Path, default=DEFAULT_ROOT, metavar="DIR", help="default: %(default)s"
    )
    details.add_argument(
        "--accept-license",
        action="store_true",
        help="download a missing pack; InsightFace's packs are for non-commercial research only",
    )
    details.add_argument("--seed", type=int, default=0, help="with --synthetic; default: %(default)s")


def source_from(arguments: argparse.Namespace) -> Source:
    """The source that parsed arguments name."""
    if arguments.onnx_path:
        return OnnxFile(arguments.onnx_path, arguments.normalisation)
    if arguments.insightface_pack:
        return InsightFacePack(
            arguments.insightface_pack, arguments.insightface_root, arguments.accept_license
        )
    if arguments.checkpoint:
        return Checkpoint(arguments.checkpoint)
    return Synthetic(arguments.synthetic, arguments.seed)


def source_of(command: str) -> Source:
    """The source that a manifest's rebuild command names."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_sources(parser)
    arguments, _ = parser.parse_known_args(shlex.split(command))
    return source_from(arguments)


def _normalisation(text: str) -> Normalisation:
    try:
        return Normalisation.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
