"""The embedder that `embed` and its siblings use: one model, on a server or in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .connection import Server
from .terminal import Interrupted, say

if TYPE_CHECKING:
    from ..backends.base import EmbeddingBackend
    from ..bulk.stream import RowStream
    from ..gallery import GalleryInfo
    from ..settings import PipelineSettings

TRITON = "triton"


def settings_of(server: Server, backend: str, model: str | None, version: int | None) -> PipelineSettings:
    """The settings of one model, which no other stands in for.

    Args:
        server: The flags that say which server.
        backend: "triton", or a backend in this process.
        model: NAME or NAME:VERSION of a model on the server, or the NAME of a family; None leaves it to the
            settings.
        version: Of a model on the server.

    Raises:
        typer.BadParameter: They do not go together.
        ConfigError: As ``load_pipeline_settings``.
    """
    from ..failover.discovery import Pin
    from ..models.naming import family

    pin = None if model is None else Pin.parse(model)
    if pin is not None and None not in (pin.version, version):
        raise typer.BadParameter(f"--model {model} names a version; leave out --version {version}.")
    number = (pin and pin.version) or version
    if backend == TRITON:
        named: dict[str, object] = {"triton.model": pin and pin.model, "triton.version": number}
    elif number is None:
        named = {"embedding.model": pin and family(pin.model)}
    else:
        raise typer.BadParameter(f"--backend {backend} embeds with the newest version; leave out {number}.")
    return server.settings(**named, **{"embedding.backend": backend, "embedding.allow_cpu_fallback": False})


@contextmanager
def embedder(settings: PipelineSettings, command: str = "") -> Iterator[tuple[EmbeddingBackend, GalleryInfo]]:
    """Make the embedder, and check it against the model's manifest; a server's version is pinned.

    Yields:
        The embedder, and what a gallery by it says of itself.

    Raises:
        ArcFaceError: It cannot serve.
    """
    from ..backends.factory import make_single
    from ..bulk.rows import describe

    version = settings.triton.version
    if version is None and settings.embedding.backend == TRITON:
        logging.disable(logging.INFO)  # the pinned one says again that it serves
        try:
            with make_single(settings) as newest:
                newest.ensure_ready()
                version = newest.diagnostics().version  # another may become the newest
        finally:
            logging.disable(logging.NOTSET)
    with make_single(settings, version) as made:
        made.ensure_ready()
        info = describe(made, command)
        say_unknown(settings, info)
        yield made, info


@contextmanager
def kept_by(stream: RowStream) -> Iterator[None]:
    """Let the line for Ctrl-C say that a gallery keeps what the stream embedded, if there is something."""
    try:
        yield
    except KeyboardInterrupt as error:
        if stream.counts.done or stream.counts.kept:
            raise Interrupted("what is embedded is kept; run the same command again to go on") from error
        raise


def say_unknown(settings: PipelineSettings, info: GalleryInfo) -> None:
    """Write a line on standard error if no manifest says which model it is."""
    if info.space.source_sha256 is None:
        where = Path(settings.embedding.model_repository).absolute()
        say(
            f"{info.named} could not be checked: no manifest of it is in {where} "
            "(embedding.model_repository)."
        )
