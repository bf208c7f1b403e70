"""``arcface-client embed``: crops in, a gallery or an ``.npz`` of embeddings out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..errors import ImageFileError, require
from .connection import Json, Resize, Server
from .embedder import TRITON, embedder, kept_by, settings_of
from .terminal import DONE, FAILED, examples, print_json, rate_of, say, with_shared_options

if TYPE_CHECKING:
    from ..bulk.job import Result
    from ..bulk.rows import Rows
    from ..bulk.stream import Counts, RowStream
    from ..gallery import GalleryInfo

EPILOG: Final = examples(
    "arcface-client embed crops/ --output embeddings.npz",
    "arcface-client embed 'shards/*.tar' --output gallery.parquet",
    "arcface-client embed s3://bucket/crops.parquet --output gallery/ --model arcface_r50_trt --json",
    "arcface-client embed crops/ --backend openvino --model arcface_r50 --output gallery.parquet",
    "arcface-client embed 's3://bucket/*.tar' --output gallery/ --url triton:8001 --ray auto --actors 1,8",
    exit_codes="0 every image is embedded, 1 failed or some images skipped",
    interrupted=" (a gallery keeps what is written)",
)

_TOLD: Final = 20
"""Images that are named when they cannot be embedded; a gallery holds all of them."""


def _output(text: str) -> str:
    if Path(text).suffix.lower() not in ("", ".npz", ".parquet") and not text.endswith("/"):
        raise typer.BadParameter(f"{text!r} must end in .npz or .parquet, or in / for a folder.")
    return text


@with_shared_options
def embed(
    server: Server,
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folders, tar files, lists of paths (.txt), tables (.parquet), patterns with *, images.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            callback=_output, help="gallery.parquet, a folder for a gallery in parts, or a small .npz."
        ),
    ],
    resize: Resize = False,
    as_json: Json = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to use, NAME or NAME:VERSION (default: triton.model, which is embedding.model's "
            "ONNX model); in this process, a NAME as embedding.model."
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Its version (default: the newest that is ready).")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Where to embed: triton, or in this process with cudnn, tensorrt, openvino, onnxruntime or "
            "insightface.",
        ),
    ] = TRITON,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that read and decode (default: one for each processor, 8 at most)."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Go on with a gallery that an earlier run left, or begin anew."
        ),
    ] = True,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Embed again what failed in an earlier run.")
    ] = False,
    part_rows: Annotated[
        int, typer.Option(min=1, help="Rows after which a part is written; they come 128 at a time.")
    ] = 8_192,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel="Ray",
            help="Embed on a Ray cluster: HOST:PORT, auto for the cluster of this machine or of RAY_ADDRESS, "
            "or local to start one here.",
        ),
    ] = None,
    actors: Annotated[
        str | None,
        typer.Option(
            metavar="[MIN,]MAX",
            rich_help_panel="Ray",
            help="How many actors embed, MIN of them at first (default: 1, and up to what the cluster has "
            "room for).",
        ),
    ] = None,
    actor_gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="GPUS",
            rich_help_panel="Ray",
            help="GPUs of each actor (default: 1 for a model on a GPU in its process, else 0).",
        ),
    ] = None,
) -> int:
    """Embed aligned 112x112 face crops, any number of them.

    A gallery is Parquet with the columns `id`, `embedding` (float32 [D], unit length), `source` (the replica
    that embedded it) and `error`. It knows its embedding space. A run that was interrupted goes on where it
    was when the same command is given again; --retry-failed embeds again what failed. An image that cannot
    be embedded has its reason in the column `error`.

    An .npz is for small jobs: it holds `embeddings` (float32 [N, D]), `paths`, and strings such as `model`,
    `version` and `source_sha256` (empty where unknown), appears when all is embedded, and leaves out what
    failed.

    The model is first checked against its manifest in embedding.model_repository. Folders are searched at
    every depth for .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp and .tar; links to files are followed, links
    to folders are not. A file that is given by name is read whatever its suffix. Every source may be a URL
    of fsspec, for example s3://bucket/crops/ (extra `bulk`).
    """
    from ..bulk.job import fill_gallery
    from ..bulk.source import open_source
    from ..bulk.stream import Stream
    from .output import check_output

    require("PIL", extra="cli", purpose="Reading images")  # before a server is asked
    is_archive = output.lower().endswith(".npz")
    if is_archive and retry_failed:
        raise typer.BadParameter("An .npz is always written as a whole; --retry-failed is for galleries.")
    if ray is None and (actors or actor_gpus is not None):
        raise typer.BadParameter(
            "--actors and --actor-gpus are for a Ray cluster; give --ray ADDRESS as well."
        )
    if ray is not None and (is_archive or workers is not None):
        raise typer.BadParameter(
            "--ray writes galleries, and reads in its own tasks; leave out .npz and --workers."
        )
    settings = settings_of(server, backend, model, version)
    source = open_source(sources, whole_paths=is_archive)
    if next(source.items(), None) is None:
        searched = ", ".join(sources)
        raise ImageFileError(f"There is no image in {searched}; expected images, or tar files of images.")
    if is_archive or not Path(output).exists():
        check_output(Path(output))
    with ExitStack() as stack:
        told = _Told(stack.enter_context(rate_of("embed")), math.inf if is_archive else _TOLD)
        how: dict[str, Any] = {"resize": resize, "observe": told.observe}
        stream: RowStream
        if ray is not None:
            from .embed_ray import ray_stream

            opened = ray_stream(
                settings, source, address=ray, size=actors, gpus=actor_gpus, command=context.obj, **how
            )
            stream, info = stack.enter_context(opened)
        else:
            made, info = stack.enter_context(embedder(settings, context.obj))
            stream = Stream(source, made, workers=workers, **how)
        if is_archive:
            outcome = _archive(stream, Path(output), info)
        else:
            if resume:  # else the same command begins anew
                stack.enter_context(kept_by(stream))
            result = fill_gallery(
                stream,
                Path(output),
                info,
                part_rows=part_rows,
                retry_failed=retry_failed,
                resume=resume,
                advice="Give another --output, or --no-resume to replace it.",
            )
            outcome = _gallery(result)
    sha256 = info.space.source_sha256
    if as_json:
        by = {"model": info.model, "version": info.version, "source_sha256": sha256}
        print_json({"output": output} | outcome.figures | by)
    else:
        of = f" (source SHA-256 {sha256:.12}...)" if sha256 else ""
        print(f"{output}: {outcome.figures['embedded']} embeddings by {info.named}{of}{outcome.text}")
    return FAILED if outcome.has_failed else DONE


@dataclass(frozen=True)
class _Outcome:
    figures: dict[str, Any]
    text: str
    has_failed: bool


class _Told:
    """Shows how far it is, and says which images cannot be embedded."""

    def __init__(self, show: Callable[[int, int | None], None], most: float) -> None:
        self._show, self._left = show, most

    def observe(self, counts: Counts, rows: Rows | None) -> None:
        self._show(counts.done + counts.kept + counts.duplicates, counts.total)
        for error in filter(None, rows.errors if rows else ()):
            self._left -= 1
            if self._left > 0:
                say(f"skipped: {error}")
            elif self._left == 0:
                say("Further ones are in the gallery's column `error`.")


def _archive(stream: RowStream, output: Path, info: GalleryInfo) -> _Outcome:
    from ..bulk.ids import IdSet
    from .output import embedding_archive

    space, skipped = info.space, list[str]()
    texts = {
        "model": info.model,
        "version": info.version,
        "source_sha256": space.source_sha256,
        "preprocessing": space.preprocessing,
        "precision_class": space.precision_class,
        "command": info.command,
        "tools": json.dumps(dict(info.tools)),
    }
    with (
        embedding_archive(output, **{name: str(text or "") for name, text in texts.items()}) as add,
        closing(stream.rows(IdSet())) as all_rows,
    ):
        for rows in all_rows:
            skipped += compress(rows.ids, rows.errors)
            good = [error is None for error in rows.errors]
            if any(good):
                add(list(compress(rows.ids, good)), rows.embeddings[good])
        done = stream.counts.done - stream.counts.failed
        if not done:
            raise ImageFileError(
                f"None of {stream.counts.done} files is a face crop; {output} is not written."
            )
    text = f", {len(skipped)} files skipped" if skipped else ""
    return _Outcome({"embedded": done, "skipped": skipped}, text, bool(skipped))


def _gallery(result: Result) -> _Outcome:
    figures = {
        "embedded": result.rows - result.failed,
        "failed": result.failed,
        "kept": result.counts.kept,
        "duplicates": result.counts.duplicates,
    }
    texts = {
        f", {result.failed:,} failed (--retry-failed embeds them again)": result.failed,
        f", {result.counts.kept:,} by an earlier run": result.counts.kept,
        f", {result.counts.duplicates:,} left out whose id occurs again": result.counts.duplicates,
    }
    text = "".join(text for text, count in texts.items() if count)
    return _Outcome(figures, text, bool(result.failed or result.counts.duplicates))
