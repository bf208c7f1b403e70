"""Face crops in, ArcFace embeddings out, through Triton Inference Server or in this process.

::

    from arcface_client import get_embedding_backend

    with get_embedding_backend("triton") as embedder:
        embedder.ensure_ready()
        embeddings = embedder.encode(crops)  # uint8 [N, 112, 112, 3] BGR -> float32 [N, D]

``EmbeddingClient`` and its asyncio twin are the plain clients of one model of one server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors
    from .backends.aio import AsyncEmbeddingBackend
    from .backends.base import EmbeddingBackend
    from .backends.factory import get_embedding_backend
    from .backends.pooled import TritonBackend
    from .failover.replica import Intervals
    from .observability.diagnostics import Diagnostics, Served
    from .triton.aio import AsyncEmbeddingClient
    from .triton.channel import Connection
    from .triton.client import EmbeddingClient
    from .triton.limits import RequestLimits, Tls

__all__ = [
    "AsyncEmbeddingBackend",
    "AsyncEmbeddingClient",
    "Connection",
    "Diagnostics",
    "EmbeddingBackend",
    "EmbeddingClient",
    "Intervals",
    "RequestLimits",
    "Served",
    "Tls",
    "TritonBackend",
    "errors",
    "get_embedding_backend",
]

_MODULES = {
    "AsyncEmbeddingBackend": "backends.aio",
    "AsyncEmbeddingClient": "triton.aio",
    "Connection": "triton.channel",
    "Diagnostics": "observability.diagnostics",
    "EmbeddingBackend": "backends.base",
    "EmbeddingClient": "triton.client",
    "Intervals": "failover.replica",
    "RequestLimits": "triton.limits",
    "Served": "observability.diagnostics",
    "Tls": "triton.limits",
    "TritonBackend": "backends.pooled",
    "errors": "errors",
    "get_embedding_backend": "backends.factory",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: gRPC alone takes a fifth of a second.
    if name in _MODULES:
        module = import_module(f".{_MODULES[name]}", __name__)
        return module if name == "errors" else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
