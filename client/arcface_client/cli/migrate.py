"""``arcface-client migrate``: the same crops in another model's embedding space, and what that changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..errors import InputError
from .connection import Json, Resize, Server, Threshold
from .embedder import TRITON, embedder, kept_by, settings_of
from .terminal import DONE, FAILED, examples, print_json, print_table, progress, rate_of, with_shared_options

if TYPE_CHECKING:
    from ..bulk.source import Source
    from ..evaluation.neighbours import Change
    from ..gallery import Gallery

EPILOG: Final = examples(
    "arcface-client migrate old.parquet --source crops/ --to arcface_r100_onnx --output new.parquet",
    "arcface-client migrate old/ --source 's3://bucket/*.tar' --to arcface_r100_trt:2 --output new/ --json",
    exit_codes="0 every crop of the old gallery is in the new one, 1 failed or some are not",
    interrupted=" (what is written is kept)",
)


@with_shared_options
def migrate(
    server: Server,
    context: typer.Context,
    old: Annotated[
        str, typer.Argument(help="The gallery in use: .parquet, a folder of parts, an .npz, or a URL.")
    ],
    source: Annotated[list[str], typer.Option(help="Where its crops are, as `embed` was given it.")],
    to: Annotated[str, typer.Option(metavar="MODEL", help="The new model, NAME or NAME:VERSION.")],
    output: Annotated[str, typer.Option(help="The new gallery: a .parquet file, or a folder for parts.")],
    backend: Annotated[
        str, typer.Option(metavar="TYPE", help="Where to embed, as for `embed`: triton, openvino, ...")
    ] = TRITON,
    sample: Annotated[int, typer.Option(min=2, help="Ids that are compared, taken at random.")] = 1000,
    k: Annotated[int, typer.Option("--k", min=1, help="Neighbours of each that are compared.")] = 10,
    threshold: Threshold = 0.3,
    resize: Resize = False,
    as_json: Json = False,
) -> int:
    """Embed a gallery's crops again with another model, and say how neighbours and decisions change.

    Embeddings of two models cannot be compared, so a new model needs a new gallery. It gets the same ids.
    The old gallery is only read: nothing is switched. When the command is interrupted, it goes on where it
    was.

    On a sample of the ids, the report gives the share of the old neighbours that are still neighbours
    (recall@k), and how many pairs of crops change sides of the threshold. Models have different scales of
    similarity. So the report also gives the new model's threshold that accepts as many pairs, and how many
    pairs change sides with that one.
    """
    from ..bulk.job import fill_gallery
    from ..bulk.source import open_source
    from ..bulk.stream import Stream
    from ..evaluation.neighbours import change
    from ..gallery import open_gallery
    from .output import check_output

    if output.lower().endswith(".npz"):
        raise typer.BadParameter("The new gallery is a .parquet file or a folder, not an .npz.")
    if Path(output).resolve() == Path(old).resolve():
        raise InputError(f"--output {output} is the old gallery, which is only read; give another.")
    if not Path(output).exists():
        check_output(Path(output))
    before = open_gallery(old)
    crops = open_source(source, whole_paths=old.lower().endswith(".npz"))  # which has whole paths as ids
    _check_source(crops, before)
    settings = settings_of(server, backend, to, None)
    with embedder(settings, context.obj) as (made, info), rate_of("migrate") as show:
        if info.space == before.info.space and info.space.source_sha256 is not None:
            raise InputError(f"{old} is by {before.info}, as {to} is, so there is nothing to migrate.")
        stream = Stream(
            crops,
            made,
            resize=resize,
            observe=lambda counts, _: show(counts.done + counts.kept, counts.total),
        )
        with kept_by(stream):
            result = fill_gallery(stream, Path(output), info)
    after = open_gallery(output)
    with progress("migrate") as shown:
        shown("comparing ids", None)
        missing, added = _missing_in(after, before), _missing_in(before, after)
        found = change(before, after, size=sample, k=k, threshold=threshold, progress=shown)
    figures = {"rows": result.rows, "failed": result.failed, "missing": missing, "added": added}
    if as_json:
        names = {"old": old, "output": output}
        models = {"from": before.info.named, "to": info.named}
        print_json(names | models | figures | {"change": asdict(found)})
    else:
        print(f"{old}: {before.count:,} crops by {before.info}")
        print(f"{output}: {result.rows:,} crops by {info}")
        print_table(["", ""], _lines(found, threshold, figures))
        print(f"{old} is as it was. To switch, let the application use {output} and its model together.")
    return FAILED if result.failed or missing else DONE


def _check_source(crops: Source, old: Gallery) -> None:
    from ..bulk.ids import IdSet

    known = IdSet(old.ids())
    if len(known) and not any(known.contain([item.id])[0] for item in crops.items()):
        raise InputError(
            f"{old.path} has no id of {', '.join(crops.names)}; its own are such as {next(old.ids())[0]!r}. "
            "Give --source as `embed` was given it, so that ids are kept."
        )


def _lines(found: Change, threshold: float, figures: dict[str, int]) -> Iterator[tuple[str, str]]:
    if figures["failed"]:
        yield "crops that could not be embedded (column `error`)", f"{figures['failed']:,}"
    yield "ids of the old gallery that the source lacks", f"{figures['missing']:,}"
    yield "ids that are new", f"{figures['added']:,}"
    yield "ids compared", f"{found.sample:,}"
    yield f"recall@{found.k}", f"{found.recall:.3f}"
    yield "same nearest neighbour", f"{found.nearest:.1%}"
    pairs = f"of {found.flips.pairs:,} pairs"
    yield f"flips at {threshold:g}", f"{found.flips.count:,} {pairs}"
    if found.matching_threshold is not None:
        yield "threshold of the new model that accepts as many pairs", f"{found.matching_threshold:.3f}"
        yield "flips with it", f"{found.matched_flips:,} {pairs}"


def _missing_in(gallery: Gallery, other: Gallery) -> int:
    """How many ids of the other gallery this one lacks."""
    from ..bulk.ids import IdSet

    known = IdSet(gallery.ids())
    return sum(int((~known.contain(ids)).sum()) for ids in other.ids())
