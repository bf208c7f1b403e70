"""``arcface-client embed --ray``: the same job on a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import typer

from .embedder import TRITON, say_unknown

if TYPE_CHECKING:
    from ..bulk.ray_job import Actors, RayStream
    from ..bulk.source import Source
    from ..bulk.stream import Observe
    from ..gallery import GalleryInfo
    from ..settings import PipelineSettings

_ON_GPUS: Final = ("cudnn", "tensorrt")


@contextmanager
def ray_stream(
    settings: PipelineSettings,
    source: Source,
    *,
    address: str,
    size: str | None,
    gpus: float | None,
    command: str,
    resize: bool,
    observe: Observe,
) -> Iterator[tuple[RayStream, GalleryInfo]]:
    """Embed a source on a cluster.

    Args:
        settings: Of the embedder, as every actor makes it.
        source: Where the crops are, for every machine of the cluster.
        address: Of the cluster; see ``ray_job.cluster``.
        size: Numbers of actors, ``MAX`` or ``MIN,MAX``.
        gpus: Of each actor; None takes one where the model is on a GPU.
        command: What was typed.
        resize: Scale images of another size instead of refusing them.
        observe: Is told how far it is.

    Yields:
        What embeds the source, and what a gallery of it says of itself.

    Raises:
        ArcFaceError: As ``ray_job.cluster``.
    """
    from ..backends.factory import make_single
    from ..bulk.ray_job import RayStream, cluster, describe_there

    embedding = settings.embedding
    models = embedding.model_repository.absolute()  # an actor has another working directory
    settings = settings.model_copy(
        update={"embedding": embedding.model_copy(update={"model_repository": models})}
    )
    if gpus is None:
        is_here = embedding.backend != TRITON and embedding.device.kind == "cuda"
        gpus = float(is_here or embedding.backend in _ON_GPUS)
    with cluster(address) as ray:
        actors = _actors(size, gpus, ray.cluster_resources())
        newest = partial(make_single, settings, settings.triton.version)
        info = describe_there(ray, newest, actors, command)
        say_unknown(settings, info)
        pinned = partial(make_single, settings, info.version)
        yield RayStream(ray, source, pinned, info.space, actors, resize=resize, observe=observe), info


def _actors(size: str | None, gpus: float, cluster: Mapping[str, float]) -> Actors:
    from ..bulk.ray_job import Actors

    if size is None:
        room = cluster.get("GPU", 0) / gpus if gpus else cluster.get("CPU", 1) / 2  # half of them read
        return Actors(most=max(1, int(room)), gpus=gpus)
    match = re.fullmatch(r"(?:([1-9]\d*),)?([1-9]\d*)", size, re.ASCII)
    if match is None or int(match[1] or 1) > int(match[2]):
        raise typer.BadParameter(f"--actors is {size!r}; expected a number from 1, or MIN,MAX.")
    return Actors(least=int(match[1] or 1), most=int(match[2]), gpus=gpus)
