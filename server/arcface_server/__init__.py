"""A real Triton Inference Server for machines without its container.

::

    from arcface_server import LocalTriton

    with LocalTriton("model_repository") as server:
        print(server.grpc_url)
"""

from .local import LocalTriton

__all__ = ["LocalTriton"]
