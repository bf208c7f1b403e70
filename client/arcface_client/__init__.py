"""Face crops in, ArcFace embeddings out, through Triton Inference Server.

::

    from arcface_client import EmbeddingClient

    with EmbeddingClient("localhost:8001", model="arcface_r100_onnx") as client:
        embeddings = client.encode(crops)  # uint8 [N, 112, 112, 3] BGR -> float32 [N, 512]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncEmbeddingClient
    from .client import EmbeddingClient

__all__ = ["AsyncEmbeddingClient", "EmbeddingClient"]


def __getattr__(name: str) -> Any:
    # gRPC takes a fifth of a second to import; who needs only the contract does not wait for it.
    if name == "EmbeddingClient":
        from .client import EmbeddingClient

        return EmbeddingClient
    if name == "AsyncEmbeddingClient":
        from .aio import AsyncEmbeddingClient

        return AsyncEmbeddingClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
