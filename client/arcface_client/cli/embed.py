"""``arcface-client embed``: image files in, an ``.npz`` of embeddings out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import typer

from ..errors import DeploymentError, ImageFileError, NotFiniteError, require
from .connection import Server
from .terminal import DONE, FAILED, counted, examples, print_json, progress, say, with_shared_options

if TYPE_CHECKING:
    from ..contract import Crops
    from ..settings import PipelineSettings

EPILOG: Final = examples(
    "arcface-client embed crops/ --output embeddings.npz",
    "arcface-client embed crops/ one.png --model arcface_r100_onnx --resize --output embeddings.npz --json",
    exit_codes="0 every image is embedded, 1 failed or some images skipped, 2 wrong usage, 130 interrupted",
)


def _npz(path: Path) -> Path:
    if path.suffix.lower() != ".npz":
        raise typer.BadParameter(f"{str(path)!r} does not end in .npz; give a name that does.")
    return path


def _check(settings: PipelineSettings) -> tuple[int | None, str | None]:
    """Hold the served model against its manifest, where that is here.

    Returns:
        The version that answered, and the SHA-256 of its source; None where unknown.

    Raises:
        DeploymentError: It embeds the golden crops otherwise than its manifest says.
    """
    from ..failover.golden_check import check_golden
    from ..models.golden import golden_crops
    from ..models.repository import LocalModels

    with settings.triton.client() as client:
        embeddings, version = client.encode(golden_crops()), client.answered_by
    model, models = str(settings.triton.model), LocalModels(settings.embedding.model_repository)
    named, where = _named(model, version), models.root.absolute()
    reference = None if version is None else models.golden(model, version)
    if reference is None:
        say(f"{named} could not be checked: no manifest of it is in {where} (embedding.model_repository).")
        return version, None
    try:
        check_golden(embeddings, reference, settings.embedding.max_drift_cosine)
    except DeploymentError as error:
        raise DeploymentError(
            f"{named} is not the model of its manifest in {where}, so nothing is embedded; serve the file "
            f"that was built, or build the next version: {error}"
        ) from error
    return version, reference.space.source_sha256


def _named(model: str, version: int | None) -> str:
    return model if version is None else f"{model}:{version}"


@with_shared_options
def embed(
    server: Server,
    paths: Annotated[list[Path], typer.Argument(help="Image files, and folders to search.")],
    output: Annotated[Path, typer.Option(callback=_npz, help="The .npz file to write.")],
    resize: Annotated[
        bool, typer.Option("--resize", help="Scale crops of another size instead of refusing them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to use, NAME or NAME:VERSION (default: triton.model, which is embedding.model's "
            "ONNX model)."
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Its version (default: the newest that is ready).")
    ] = None,
) -> int:
    """Embed image files into an .npz file.

    The images are aligned 112x112 face crops. The file holds `embeddings` (float32 [N, D], unit rows),
    `paths`, and the strings `model`, `version` and `source_sha256` (empty where unknown). The model is
    first checked against its manifest in embedding.model_repository. Folders are searched at every depth
    for .bmp, .jpeg, .jpg, .png, .tif, .tiff and .webp; links to files are followed, links to folders are
    not. A file that is given by name is read whatever its suffix. A file that is not a face crop is
    reported and skipped.
    """
    from ..evaluation.images import SUFFIXES, find_images, read_crop
    from ..failover.discovery import Pin
    from .output import check_output, embedding_archive

    require("PIL", extra="cli", purpose="Reading images")  # before a server is asked
    pin = None if model is None else Pin.parse(model)
    if pin is not None and None not in (pin.version, version):
        raise typer.BadParameter(f"--model {model} names a version; leave out --version {version}.")
    flags = {"triton.model": pin and pin.model, "triton.version": (pin and pin.version) or version}
    settings = server.settings(**flags)
    files = list(find_images(paths))
    if not files:
        searched, known = ", ".join(map(str, paths)), ", ".join(sorted(SUFFIXES))
        raise ImageFileError(f"There is no image in {searched}; expected files that end in {known}.")
    count = "1 image" if len(files) == 1 else f"{len(files)} images"
    names: list[str] = []
    skipped: list[str] = []

    check_output(output)
    answered, source_sha256 = _check(settings)
    name = str(settings.triton.model)
    served = settings.triton.model_copy(update={"version": answered})  # another may become the newest
    texts = {"model": name, "version": str(answered or ""), "source_sha256": source_sha256 or ""}

    with (
        progress("embed") as report,
        served.client() as client,
        embedding_archive(output, **texts) as add,
    ):

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
        told = {"model": name, "version": answered, "source_sha256": source_sha256}
        print_json({"output": str(output), "embedded": done, "skipped": skipped, **told})
    else:
        by = _named(name, answered) + (f" (source SHA-256 {source_sha256:.12}...)" if source_sha256 else "")
        print(f"{output}: {done} embeddings by {by}" + (f", {len(skipped)} files skipped" if skipped else ""))
    return FAILED if skipped else DONE
