"""A real Triton Inference Server for machines without its container.

::

    from arcface_server import LocalTriton

    with LocalTriton("model_repository") as server:
        print(server.grpc_url)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .local import LocalTriton

__all__ = ["LocalTriton"]


def __getattr__(name: str) -> Any:
    if name == "LocalTriton":
        from .local import LocalTriton

        return LocalTriton
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
