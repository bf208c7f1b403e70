"""Clients that share memory with a server, and what the server has of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient import grpc as tritonclient

from arcface_client import EmbeddingClient
from arcface_client.triton.channel import Connection
from arcface_server import LocalTriton
from support.tiny import TINY_MODEL


@contextmanager
def sharing(url: str, model: str = TINY_MODEL) -> Iterator[tuple[EmbeddingClient, Connection]]:
    connection = Connection(url, retries=False, shared_memory=True)
    try:
        yield EmbeddingClient(url, model, connection=connection), connection
    finally:
        connection.close()


def known_regions(server: LocalTriton) -> set[str]:
    """The regions that a server has open."""
    with tritonclient.InferenceServerClient(server.grpc_url) as control:
        return set(control.get_system_shared_memory_status().regions)
