"""A job that embeds a source into a gallery, and goes on where it was when it is run again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backends.base import EmbeddingBackend
from ..errors import InputError
from ..gallery import ROWS_AT_ONCE, GalleryInfo, check_same_space, open_gallery
from .ids import IdSet
from .parts import Parts, PartWriter, drop_failed
from .source import Source
from .stream import Counts, Observe, RowStream, Stream


@dataclass(frozen=True)
class Result:
    """What a job left.

    Attributes:
        rows: Of the gallery.
        failed: Those of them that have no embedding.
        counts: What this run did.
    """

    rows: int
    failed: int
    counts: Counts


def embed_gallery(
    source: Source,
    backend: EmbeddingBackend,
    output: Path,
    info: GalleryInfo,
    *,
    resize: bool = False,
    workers: int | None = None,
    part_rows: int = ROWS_AT_ONCE,
    retry_failed: bool = False,
    resume: bool = True,
    observe: Observe,
) -> Result:
    """Embed what is not embedded yet, and keep what was embedded in each case.

    Args:
        source: Where the crops are.
        backend: Embeds them; ``ensure_ready`` was called.
        output: A ``.parquet`` file, whose parts are beside it until it is whole, or a folder of parts.
        info: What the gallery says of itself; its ``job`` is filled in here.
        resize: Scale images of another size instead of refusing them.
        workers: Processes that read; None takes one for each processor, 8 at most.
        part_rows: A part is written when it has so many rows.
        retry_failed: Embed rows again that have no embedding.
        resume: Go on with what an earlier run of this job left; False begins anew.
        observe: Is told how far it is.

    Raises:
        InputError: The output belongs to another job, cannot be written to, or another process writes to it.
        SourceUnavailableError: The source cannot be read now.
        ArcFaceError: As ``EmbeddingBackend.encode``.
    """

    def start(known: IdSet) -> Stream:
        return Stream(source, backend, known=known, resize=resize, workers=workers, observe=observe)

    return fill_gallery(
        source,
        start,
        output,
        info,
        resize=resize,
        part_rows=part_rows,
        retry_failed=retry_failed,
        resume=resume,
    )


def fill_gallery(
    source: Source,
    start: Callable[[IdSet], RowStream],
    output: Path,
    info: GalleryInfo,
    *,
    resize: bool,
    part_rows: int,
    retry_failed: bool,
    resume: bool,
) -> Result:
    """Write a gallery of rows that are embedded anywhere; see ``embed_gallery``.

    Args:
        source: Where the crops are.
        start: Begins to embed the source, without the ids that are known.
        output: As in ``embed_gallery``, and so on.
        info: What the gallery says of itself.
        resize: What ``start`` does.
        part_rows: A part is written when it has so many rows.
        retry_failed: Embed rows again that have no embedding.
        resume: Go on with what an earlier run of this job left.
    """
    info = replace(info, job=_job(source, info, resize))
    is_file = output.suffix.lower() == ".parquet"
    if output.exists() and output.is_dir() == is_file:
        raise InputError(f"{output} is a {'folder' if is_file else 'file'}; give another --output.")
    parts = Parts(output.with_name(f"{output.name}.parts") if is_file else output)
    whole = output if is_file and output.exists() and resume and not parts.files() else None
    for file in [whole] if whole else parts.files():
        _check_job(file, info if resume else None, output)
    if whole and not (retry_failed and _failed(output)):
        count = _count(whole)
        return Result(count, _failed(whole), Counts(kept=count))
    with parts.locked():
        if not resume:
            parts.clear()
        elif whole:
            drop_failed(open_gallery(whole), parts.next())
        elif retry_failed:
            for file in filter(_failed, parts.files()):
                drop_failed(open_gallery(file), file)
        running = start(parts.known())
        with PartWriter(parts, info, part_rows) as writer, closing(running.__iter__()) as all_rows:
            for rows in all_rows:
                writer.add(rows)
        failed, count = (
            sum(map(_failed, parts.files())),
            sum(open_gallery(file).count for file in parts.files()),
        )
        if is_file:
            parts.join(output, info)
    return Result(count, failed, running.counts)


def _job(source: Source, info: GalleryInfo, resize: bool) -> dict[str, Any]:
    """What decides whether a job may go on with a gallery, besides the embedding space."""
    return {
        "sources": list(source.names),
        "model": info.model,
        "version": info.version,
        "resize": resize,
    }


def _check_job(file: Path, info: GalleryInfo | None, output: Path) -> None:
    """Check that a file is a gallery, and of this job unless that is None.

    Raises:
        InputError: It is not; the message says what differs.
        OtherEmbeddingSpaceError: It is of another embedding space.
    """
    theirs = open_gallery(file).info
    if info is None:
        return
    for key, ours in info.job.items():
        if theirs.job.get(key) != ours:
            raise InputError(
                f"{output} belongs to another job: {key} was {theirs.job.get(key)!r} there, and is {ours!r} "
                "now. Give another --output, or --no-resume to replace it."
            )
    check_same_space(theirs, info, (str(output), "this job"))


def _count(file: Path) -> int:
    return open_gallery(file).count


def _failed(file: Path) -> int:
    return sum(1 for _ in open_gallery(file).failed())
