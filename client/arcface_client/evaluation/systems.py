"""What can be compared: models of a Triton server, ONNX files in this process, and InsightFace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from ..backends.insightface import SourceRuntime, find_source, source_sha256
from ..contract import Crops, Embeddings
from ..errors import DeploymentError, InputError, ModelNotFoundError, require
from ..failover.discovery import Pin
from ..models.naming import family_models
from ..models.normalisation import Pixels
from ..models.repository import LocalModels
from ..runtimes.base import ENTRIES, Embed, in_batches
from ..triton.status import ServerStatus

if TYPE_CHECKING:
    from ..runtimes.onnxruntime import OnnxRuntime
    from ..settings import TritonSettings

_PURPOSE: Final = "The reference"


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """Something that turns crops into embeddings.

    Attributes:
        name: Its name in the report, for example "arcface_r100_trt:3".
        kind: What runs it.
        where: The server's address, or the file.
        run: Embeds one batch.
        pixels: What the reference is given; None for others.
        embed_as: Embeds crops with other pixels; None for all but the reference.
    """

    name: str
    kind: Literal["served", "in process", "reference"]
    where: str
    run: Embed
    pixels: Pixels | None = None
    embed_as: Callable[[Crops, Pixels], Embeddings] | None = None

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, D] out.

        Raises:
            ArcFaceError: The system failed, or its answer is not a batch of embeddings.
        """
        embeddings = self.run(crops)
        if not np.isfinite(embeddings).all() or not embeddings.any(axis=1).all():
            raise DeploymentError(f"{self.name} answered with embeddings that are zero, NaN or infinite.")
        return embeddings


def is_file(name: str) -> bool:
    """Whether a name means a file, and not a model of a server."""
    return name.endswith(".onnx") or "/" in name


def open_systems(
    names: Sequence[str], triton: TritonSettings, server: ServerStatus | None, stack: ExitStack
) -> list[System]:
    """Open models and files by name.

    Args:
        names: "model", "model:version" or "path/to/model.onnx", each.
        triton: Which server, and how it is called.
        server: The server's status; None if only files are named.
        stack: Closes the systems.

    Raises:
        ArcFaceError: A name is wrong or comes twice, or a system is missing or not ready.
    """
    systems: dict[str, System] = {}
    for name in names:
        system = _open_file(name, stack) if is_file(name) else _open_served(name, triton, server, stack)
        if system.name in systems:
            raise InputError(f"{system.name} is named twice; name each model once.")
        systems[system.name] = system
    return list(systems.values())


def load_file(path: Path) -> OnnxRuntime:
    """Load an ONNX file into this process, on the CPU; raises DeploymentError or MissingExtraError."""
    require("onnxruntime", extra="onnxruntime", purpose="Running an ONNX file in this process")
    from ..runtimes.onnxruntime import OnnxRuntime, open_session

    return OnnxRuntime(path, open_session(path, entries=ENTRIES))


def _open_file(name: str, stack: ExitStack) -> System:
    if not name.endswith(".onnx"):
        raise InputError(f"{name} is not an .onnx file; to compare another model, name one of a server.")
    runtime = load_file(Path(name))
    stack.callback(runtime.close)
    return System(name=name, kind="in process", where=name, run=runtime.embed)


def _open_served(name: str, triton: TritonSettings, server: ServerStatus | None, stack: ExitStack) -> System:
    pin = Pin.parse(name)
    version = pin.version
    if version is None and server is not None:
        ready = [model.version for model in server.models if model.name == pin.model and model.ready]
        version = max(filter(None, ready), default=None)
    settings = triton.model_copy(update={"model": pin.model, "version": version})
    client = stack.enter_context(settings.client())
    client.ensure_ready()  # without a version, its error says why
    return System(
        name=f"{pin.model}:{version}",
        kind="served",
        where="" if server is None else server.url,
        run=client.encode,
    )


def open_reference(source: str, stated: Pixels | None, models: LocalModels, stack: ExitStack) -> System:
    """Open a source network as its own users run it, on the CPU; see ``SourceRuntime``.

    Args:
        source: Its ONNX file, or the name of one of InsightFace's packs.
        stated: Which pixels it takes; None asks the manifest of what was built from it, and then InsightFace.
        models: The model repository, where it can be read from here.
        stack: Closes the system.

    Raises:
        DeploymentError: The file is missing, or is not a face network.
        MissingExtraError: ONNX Runtime or the insightface package is not installed.
    """
    require("onnxruntime", extra="onnxruntime", purpose=_PURPOSE)
    from ..runtimes.onnxruntime import open_session

    path = find_source(source)
    manifest = models.built_from(source_sha256(path))
    pixels, output = (manifest.preprocessing.caller, manifest.output) if manifest else (None, None)
    session = open_session(path, entries=ENTRIES, as_it_is=True)
    runtime = SourceRuntime(path, session, stated or pixels, output)
    stack.callback(runtime.close)
    return System(
        name=f"{'InsightFace' if runtime.by_insightface else 'source'} {path.name}",
        kind="reference",
        where=str(path),
        run=lambda crops: in_batches(runtime.embed, crops, runtime.batch_size),
        pixels=runtime.pixels,
        embed_as=runtime.embed_as,
    )


def siblings_on(server: ServerStatus, name: str) -> list[str]:
    """Name every ready version of ``{name}_onnx`` and its siblings, as ``open_systems`` takes them.

    ONNX models come first, and the newest version first, so that the baseline is the newest ONNX model.

    Args:
        server: The server.
        name: Name of the family, for example "arcface_r100".

    Raises:
        ModelNotFoundError: None of them is ready.
    """
    ready = [model for model in server.models if model.ready]
    newest_first = sorted(ready, key=lambda model: -(model.version or 0))
    siblings = family_models(name)[::-1]  # the ONNX model is what others are compared with
    found = [
        f"{model.name}:{model.version}"
        for wanted in siblings
        for model in newest_first
        if model.name == wanted
    ]
    if not found:
        others = ", ".join(f"{model.name}:{model.version}" for model in ready) or "none"
        raise ModelNotFoundError(
            f"{server.url} has no ready version of {' or '.join(siblings)}; ready there: {others}. "
            "Name the models to compare, or set embedding.model."
        )
    return found
