"""From what a person names to embedders: models of a server, files, the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, ModelNotFoundError
from ..failover.discovery import Pin
from ..models.naming import onnx_model, plan_model
from ..triton.server_state import ServerStatus
from .embedders import Embedder, InProcess, OnServer

if TYPE_CHECKING:
    from ..triton.client import EmbeddingClient

Connect = Callable[[str, "int | None"], "EmbeddingClient"]
"""Makes a client of a model and version."""


def is_file(spec: str) -> bool:
    """Whether a person means a file, and not a model of a server."""
    return spec.endswith(".onnx") or "/" in spec


def open_embedders(
    specs: Sequence[str], connect: Connect, server: ServerStatus | None, stack: ExitStack
) -> list[Embedder]:
    """Open what was named.

    Args:
        specs: "model", "model:version" or "path/to/model.onnx", each.
        connect: How to reach the server.
        server: What the server said of itself; None where only files are named.
        stack: Closes them.

    Raises:
        InputError: A file is no ONNX file, or the same is named twice.
        ConfigError: A text names no model.
        ArcFaceError: One of them is not there, or not ready.
    """
    embedders: list[Embedder] = []
    for spec in specs:
        if is_file(spec) and not spec.endswith(".onnx"):
            raise InputError(f"{spec} is no .onnx file; another model is compared as a server serves it.")
        opened = InProcess(Path(spec)) if is_file(spec) else _served(spec, connect, server)
        embedders.append(stack.enter_context(opened))
        if opened.name in [embedder.name for embedder in embedders[:-1]]:
            raise InputError(f"{opened.name} is named twice; name each model once.")
    return embedders


def siblings_on(server: ServerStatus, name: str) -> list[str]:
    """Every ready version of ``{name}_onnx`` and ``{name}_trt``, as ``open_embedders`` takes them.

    ONNX models come first, and the newest version first: the baseline is the newest release's ONNX model.

    Args:
        server: The server.
        name: Of the family, as "arcface_r100".

    Raises:
        ModelNotFoundError: Not one of them is ready.
    """
    ready = [model for model in server.models if model.ready]
    newest_first = sorted(ready, key=lambda model: -(model.version or 0))
    siblings = (onnx_model(name), plan_model(name))
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


def _served(spec: str, connect: Connect, server: ServerStatus | None) -> OnServer:
    pin = Pin.parse(spec)
    version = _newest(server, pin.model) if pin.version is None else pin.version
    client = connect(pin.model, version)
    try:
        client.ensure_ready()  # where there is no version, its error says why
    except BaseException:
        client.close()
        raise
    return OnServer(client, f"{pin.model}:{version}", "" if server is None else server.url)


def _newest(server: ServerStatus | None, model: str) -> int | None:
    models = () if server is None else server.models
    return max((m.version for m in models if m.name == model and m.ready and m.version), default=None)
