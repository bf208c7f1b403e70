"""``arcface-client embed``: image files in, an ``.npz`` of embeddings out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ..contract import Crops
from ..errors import ImageFileError, require
from ..evaluation.images import SUFFIXES, PassedOver, find_images, read_crop
from .archive import EmbeddingArchive
from .bars import progress
from .commandline import DONE, FAILED, printable
from .connecting import add_connection_flags, settings_from


def add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    embed = commands.add_parser(
        "embed",
        help="embed image files into an .npz",
        description="Embed aligned 112x112 face crops from files and folders into one .npz file, which holds "
        "`embeddings` (float32 [N, 512], unit rows) and `paths`. Folders are searched at every depth for "
        f"{' '.join(sorted(SUFFIXES))}; links to files are followed, links to folders are not; a file named "
        "outright is read whatever its name. A file that is no image is reported and skipped, and the exit "
        "code is 1.",
        epilog="example: arcface-client embed crops/ --model arcface_r100_onnx --output embeddings.npz",
    )
    embed.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image file, or folder to search")
    embed.add_argument("--output", required=True, type=_npz, metavar="FILE", help="the .npz file to write")
    embed.add_argument(
        "--resize", action="store_true", help="scale crops of another size instead of refusing them"
    )
    embed.add_argument("--json", action="store_true", help="report as JSON")
    embed.add_argument(
        "--model",
        metavar="NAME",
        help="model to use (default: triton.model, which is embedding.model's ONNX model)",
    )
    embed.add_argument("--version", type=int, metavar="N", help="its version (default: the newest one ready)")
    add_connection_flags(embed)
    embed.set_defaults(run=_embed)


def _npz(text: str) -> Path:
    if not text.lower().endswith(".npz"):
        raise argparse.ArgumentTypeError(f"{text!r} is no .npz file; give a name that ends in .npz")
    return Path(text)


def _embed(arguments: argparse.Namespace) -> int:
    require("PIL", extra="cli", purpose="Reading images")  # said before a server is asked
    flags = {"triton.model": arguments.model, "triton.version": arguments.version}
    settings = settings_from(arguments, **flags).triton
    passed_over = PassedOver()
    files = list(find_images(arguments.paths, passed_over))
    if not files:
        searched = ", ".join(map(str, arguments.paths))
        raise ImageFileError(f"There is no image in {searched}, which has {passed_over}.")
    names: list[str] = []
    skipped: list[str] = []

    def crops() -> Iterator[Crops]:
        for file in progress(files, unit="crop"):
            try:
                crop = read_crop(file, resize=arguments.resize)
            except ImageFileError as error:
                print(f"skipped: {printable(str(error))}", file=sys.stderr)
                skipped.append(file)
                continue
            names.append(file)
            yield crop

    with settings.client() as client, EmbeddingArchive(arguments.output) as archive:
        done = 0
        for embeddings in client.stream(crops()):
            archive.add(names[done : done + len(embeddings)], embeddings)
            done += len(embeddings)
        if not done:
            raise ImageFileError(
                f"None of {len(files)} files is a face crop; {arguments.output} is not written."
            )
    if arguments.json:
        report = {"output": str(arguments.output), "embedded": done, "skipped": skipped}
        print(json.dumps(report | {"passed_over": dataclasses.asdict(passed_over)}, indent=2))
    else:
        extra = f", {len(skipped)} files skipped" if skipped else ""
        print(f"{arguments.output}: {done} embeddings{extra}")
    if passed_over != PassedOver():
        print(f"{passed_over} were passed over", file=sys.stderr)
    return FAILED if skipped else DONE
