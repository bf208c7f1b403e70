"""The arguments that name a source model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from arcface_client.cli.commandline import utf8_path

from ..errors import OptionError
from ..source.insightface_pack import DEFAULT_ROOT
from ..source.iresnet import BLOCKS
from ..source.load import Checkpoint, InsightFacePack, OnnxFile, Source, Synthetic
from ..source.preprocessing import Normalisation

_BELONGS_TO: Final = {
    "normalisation": "onnx_path",
    "insightface_root": "insightface_pack",
    "accept_license": "insightface_pack",
    "seed": "synthetic",
}
"""Which source each detail is of; with another it would say something that is not heeded."""


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("source, exactly one of")
    sources = group.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--onnx-path", type=utf8_path, metavar="FILE", help="an ONNX file; it is not changed"
    )
    sources.add_argument("--insightface-pack", metavar="PACK", help="InsightFace's pack, e.g. buffalo_l")
    sources.add_argument(
        "--checkpoint",
        type=utf8_path,
        metavar="FILE",
        help="arcface_torch state dict, .pth (needs torch) or .safetensors",
    )
    sources.add_argument(
        "--synthetic",
        choices=BLOCKS,
        help="seeded random weights: computes like the real one, recognises no one",
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
        "--insightface-root",
        type=Path,
        metavar="DIR",
        help=f"with --insightface-pack; default: {DEFAULT_ROOT}",
    )
    details.add_argument(
        "--accept-license",
        action="store_true",
        default=None,
        help="with --insightface-pack: download a missing pack; InsightFace's packs are for non-commercial "
        "research only",
    )
    details.add_argument("--seed", type=int, help="with --synthetic; default: 0")
    parser.set_defaults(wrong_usage=parser.error)


def source_from(arguments: argparse.Namespace) -> Source:
    """The source that parsed arguments name; a detail of another source ends as wrong usage."""
    given = {name: value for name in _BELONGS_TO if (value := getattr(arguments, name)) is not None}
    for name in given:
        if getattr(arguments, _BELONGS_TO[name]) is None:
            arguments.wrong_usage(f"{_flag(name)} goes with {_flag(_BELONGS_TO[name])}")
    if arguments.onnx_path is not None:
        return OnnxFile(arguments.onnx_path, **given)
    if arguments.insightface_pack is not None:
        root = given.pop("insightface_root", DEFAULT_ROOT)
        return InsightFacePack(arguments.insightface_pack, root, **given)
    if arguments.checkpoint is not None:
        return Checkpoint(arguments.checkpoint)
    return Synthetic(arguments.synthetic, **given)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _normalisation(text: str) -> Normalisation:
    try:
        return Normalisation.parse(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
