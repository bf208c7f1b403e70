"""``arcface-client embed``: image files in, an ``.npz`` of embeddings out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import typer

from ..errors import ImageFileError, NotFiniteError, require
from .connection import Server
from .terminal import DONE, FAILED, counted, examples, print_json, progress, say, with_shared_options

if TYPE_CHECKING:
    from ..contract import Crops

EPILOG: Final = examples(
    "arcface-client embed crops/ --output embeddings.npz",
    "arcface-client embed crops/ one.png --model arcface_r100_onnx --resize --output embeddings.npz --json",
    exit_codes="0 every image is embedded, 1 failed or some images skipped, 2 wrong usage, 130 interrupted",
)


def _npz(path: Path) -> Path:
    if path.suffix.lower() != ".npz":
        raise typer.BadParameter(f"{str(path)!r} does not end in .npz; give a name that does.")
    return path


@with_shared_options
def embed(
    server: Server,
    paths: Annotated[list[Path], typer.Argument(help="Image files, and folders to search.")],
    output: Annotated[Path, typer.Option(callback=_npz, help="The .npz file to write.")],
    resize: Annotated[
        bool, typer.Option("--resize", help="Scale crops of another size instead of refusing them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Model to use (default: triton.model, which is embedding.model's ONNX model)."),
    ] = None,
    version: Annotated[int | None, typer.Option(help="Its version (default: the newest one ready).")] = None,
) -> int:
    """Embed image files into an .npz file.

    The images are aligned 112x112 face crops. The file holds `embeddings` (float32 [N, D], unit rows) and
    `paths`. Folders are searched at every depth for .bmp, .jpeg, .jpg, .png, .tif, .tiff and .webp; links to
    files are followed, links to folders are not. A file that is given by name is read whatever its suffix. A
    file that is not a face crop is reported and skipped.
    """
    from ..evaluation.images import SUFFIXES, find_images, read_crop
    from .output import embedding_archive

    require("PIL", extra="cli", purpose="Reading images")  # before a server is asked
    flags = {"triton.model": model, "triton.version": version}
    settings = server.settings(**flags).triton
    files = list(find_images(paths))
    if not files:
        searched, known = ", ".join(map(str, paths)), ", ".join(sorted(SUFFIXES))
        raise ImageFileError(f"There is no image in {searched}; expected files that end in {known}.")
    count = "1 image" if len(files) == 1 else f"{len(files)} images"
    names: list[str] = []
    skipped: list[str] = []

    with progress("embed") as report, settings.client() as client, embedding_archive(output) as add:

        def crops() -> Iterator[Crops]:
            for file in counted(files, report, f"embedding {count}", len(files)):
                try:
                    crop = read_crop(file, resize=resize)
                except ImageFileError as error:
                    say(f"skipped: {error}")
                    skipped.append(file)
                    continue
                names.append(file)
                yield crop

        seen = 0
        try:
            for embeddings in client.stream(crops()):
                batch = names[seen : seen + len(embeddings)]
                seen += len(embeddings)
                right = np.isfinite(embeddings).all(axis=1)
                add(
                    [name for name, is_right in zip(batch, right, strict=True) if is_right], embeddings[right]
                )
        except NotFiniteError as error:
            for position in error.positions:
                say(f"skipped: {names[position]}: its embedding is NaN or infinite")
                skipped.append(names[position])
        done = len(files) - len(skipped)
        if not done:
            raise ImageFileError(f"None of {len(files)} files is a face crop; {output} is not written.")
    if as_json:
        print_json({"output": str(output), "embedded": done, "skipped": skipped})
    else:
        print(f"{output}: {done} embeddings" + (f", {len(skipped)} files skipped" if skipped else ""))
    return FAILED if skipped else DONE
