"""A job that embeds a source into a gallery, and goes on where it was when it is run again."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..gallery import ROWS_AT_ONCE, GalleryInfo, check_same_space, open_gallery
from .parts import Parts, PartWriter, drop_failed
from .stream import Counts, RowStream


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


def fill_gallery(
    stream: RowStream,
    output: Path,
    info: GalleryInfo,
    *,
    part_rows: int = ROWS_AT_ONCE,
    retry_failed: bool = False,
    resume: bool = True,
    advice: str = "Give another --output.",
) -> Result:
    """Embed what is not embedded yet, and keep what was embedded in each case.

    Args:
        stream: Embeds the source.
        output: A ``.parquet`` file, whose parts are beside it until it is whole, or a folder of parts.
        info: What the gallery says of itself; its ``job`` is filled in here.
        part_rows: A part is written when it has so many rows.
        retry_failed: Embed rows again that have no embedding.
        resume: Go on with what an earlier run of this job left; False begins anew.
        advice: What to do if the output belongs to another job, for the error.

    Raises:
        InputError: The output belongs to another job, cannot be written to, or another process writes to it.
        SourceUnavailableError: The source cannot be read now.
        ArcFaceError: As ``RowStream.rows``.
    """
    info = replace(info, job=_job(stream, info))
    is_file = output.suffix.lower() == ".parquet"
    if output.exists() and output.is_dir() == is_file:
        raise InputError(f"{output} is a {'folder' if is_file else 'file'}; give another --output.")
    parts = Parts(output.with_name(f"{output.name}.parts") if is_file else output)
    whole = output if is_file and output.exists() and resume and not parts.files() else None
    for file in [whole] if whole else parts.files():
        _check_job(file, info if resume else None, output, advice)
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
        with (
            closing(PartWriter(parts, info, part_rows)) as writer,
            closing(stream.rows(parts.known())) as all_rows,
        ):
            for rows in all_rows:
                writer.add(rows)
        count, failed = sum(map(_count, parts.files())), sum(map(_failed, parts.files()))
        if is_file:
            parts.join(output, info)
    return Result(count, failed, stream.counts)


def _job(stream: RowStream, info: GalleryInfo) -> dict[str, Any]:
    """What decides whether a job may go on with a gallery, besides the embedding space."""
    return {
        "sources": list(stream.source.names),
        "model": info.model,
        "version": info.version,
        "resize": stream.resize,
    }


def _check_job(file: Path, info: GalleryInfo | None, output: Path, advice: str) -> None:
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
                f"now. {advice}"
            )
    check_same_space(theirs, info, (str(output), "this job"))


def _count(file: Path) -> int:
    return open_gallery(file).count


def _failed(file: Path) -> int:
    return sum(1 for _ in open_gallery(file).failed())
