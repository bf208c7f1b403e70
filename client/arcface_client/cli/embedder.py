"""The embedder that `embed` and its siblings use: one model, on a server or in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .connection import Server
from .terminal import say

if TYPE_CHECKING:
    from ..backends.base import EmbeddingBackend
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
def embedder(settings: PipelineSettings) -> Iterator[EmbeddingBackend]:
    """Make the embedder, and check it against the model's manifest; a server's version is pinned.

    Raises:
        ArcFaceError: It cannot serve.
    """
    if settings.embedding.backend != TRITON:
        from ..backends.factory import make_backend

        made: EmbeddingBackend = make_backend(settings)
    else:
        version = settings.triton.version
        if version is None:
            with _on_servers(settings, None) as newest:
                newest.ensure_ready()
                version = newest.diagnostics().version
        made = _on_servers(settings, version)  # another may become the newest
    with made:
        made.ensure_ready()
        yield made


def _on_servers(settings: PipelineSettings, version: int | None) -> EmbeddingBackend:
    from ..backends.pooled import TritonBackend
    from ..models.repository import LocalModels

    name = str(settings.triton.model)
    return TritonBackend(
        settings.triton.required_urls(),
        settings.embedding.model,
        [name if version is None else f"{name}:{version}"],
        records=LocalModels(settings.embedding.model_repository),
        max_drift_cosine=settings.embedding.max_drift_cosine,
        limits=settings.triton.limits,
    )


def info_of(settings: PipelineSettings, made: EmbeddingBackend, command: str) -> GalleryInfo:
    """What a gallery by an embedder says of itself; a line on standard error if the model is unknown."""
    from ..gallery import GalleryInfo
    from ..models.golden import golden_crops

    known, space = made.diagnostics(), made.space()
    info = GalleryInfo(
        space=space,
        dim=made.encode(golden_crops()[:1]).shape[1],
        model=known.model,
        version=known.version,
        command=command,
    )
    if space.source_sha256 is None:
        where = Path(settings.embedding.model_repository).absolute()
        say(
            f"{info.named} could not be checked: no manifest of it is in {where} "
            "(embedding.model_repository)."
        )
    return info
