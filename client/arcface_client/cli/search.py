"""``arcface-client search``: the faces of a gallery that are nearest to a query's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import typer

from .connection import Json, Resize, Server
from .terminal import DONE, examples, print_json, print_table, progress, say, with_shared_options

if TYPE_CHECKING:
    from ..contract import Crops
    from ..evaluation.neighbours import Query
    from ..gallery import Gallery

EPILOG: Final = examples(
    "arcface-client search gallery.parquet face.jpg",
    "arcface-client search s3://bucket/gallery/ face.jpg --top 20 --backend onnxruntime --json",
    "arcface-client search gallery.parquet face.jpg --source crops/ --html found.html",
)


@with_shared_options
def search(
    server: Server,
    gallery: Annotated[
        str, typer.Argument(help="A .parquet file, a folder of parts, an .npz, or a URL of one of them.")
    ],
    faces: Annotated[list[Path], typer.Argument(help="Image files of aligned 112x112 face crops.")],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Matches to show for each face.")] = 10,
    model: Annotated[
        str | None,
        typer.Option(help="Model that embeds the faces, NAME or NAME:VERSION (default: the gallery's own)."),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="What embeds the faces: triton, or insightface, cudnn, tensorrt, openvino or onnxruntime "
            "in this process.",
        ),
    ] = "triton",
    resize: Resize = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with the crops.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="With --html: where the gallery's crops are, as `embed` was given it."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Find the faces of a gallery that are nearest to a query's, by cosine similarity.

    The search is exact: it reads the whole gallery, and memory holds one batch of it at a time. For many
    searches, load the gallery into a vector database (examples/vector_databases.py).

    A gallery is refused if the model that embeds the faces has another embedding space. The HTML page shows
    the crops of the matches, which are looked up by id in --source (default: what the gallery was made from).
    """
    from ..evaluation.images import read_crop
    from ..evaluation.neighbours import Query, nearest
    from ..gallery import check_same_space, open_gallery
    from ..models.naming import family
    from .embedder import embedder, settings_of
    from .output import check_output, replace_text

    if html is not None:
        from ..evaluation.page import check_extra, matches_to_html

        check_extra()
        check_output(html)
    opened = open_gallery(gallery)
    crops = [read_crop(face, resize=resize) for face in faces]
    made_by = opened.info.model or ""  # a model of a repository, or the reference, which has no name there
    settings = settings_of(server, backend, model or (made_by if family(made_by) != made_by else None), None)
    with progress("search") as shown:
        shown("embedding the query", None)
        with embedder(settings) as (made, info):
            check_same_space(opened.info, info, (gallery, "the query"))
            embeddings = made.encode(np.stack(crops))
        found = nearest(opened, embeddings, top, shown)
        queries = [
            Query(name=str(face), crop=crop, matches=matches)
            for face, crop, matches in zip(faces, crops, found, strict=True)
        ]
        if html is not None:
            sources = source or list(opened.info.job.get("sources", ()))
            replace_text(html, matches_to_html(opened, queries, _crops_of(queries, sources)))
    if as_json:
        print_json(_as_dict(opened, queries))
        return DONE
    for query in queries:
        rows = [(place, f"{one.similarity:.4f}", one.id) for place, one in enumerate(query.matches, start=1)]
        print_table([query.name, "similarity", "id"], rows)
    return DONE


def _as_dict(gallery: Gallery, queries: Sequence[Query]) -> Mapping[str, object]:
    return {
        "gallery": gallery.path,
        "rows": gallery.count,
        "model": gallery.info.model,
        "version": gallery.info.version,
        "space": asdict(gallery.info.space),
        "queries": [
            {"image": query.name, "matches": [asdict(match) for match in query.matches]} for query in queries
        ],
    }


def _crops_of(queries: Sequence[Query], sources: Sequence[str]) -> dict[str, Crops]:
    """The crops of all matches that are in the sources; a line says how many are not."""
    from ..bulk.decode import decode
    from ..bulk.source import open_source

    wanted = {match.id for query in queries for match in query.matches}
    items = []
    for item in open_source(sources).items() if sources else ():
        if item.id in wanted:
            items.append(item)
            wanted.remove(item.id)
            if not wanted:
                break
    if wanted:
        say(
            f"Crops that were not found in {', '.join(sources) or 'any source'}: {len(wanted)}. The page has "
            "no pictures of them; give --source as `embed` was given it."
        )
    decoded = decode(items, resize=True)
    good = [name for name, error in zip(decoded.ids, decoded.errors, strict=True) if error is None]
    return dict(zip(good, decoded.crops, strict=True))
