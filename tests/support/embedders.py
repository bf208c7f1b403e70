"""What a serving graph gives in ONNX Runtime."""

from __future__ import annotations

from arcface_builder.graph.edit import embedder
from arcface_client.contract import Crops, Embeddings


def embed(graph: bytes, crops: Crops) -> Embeddings:
    return embedder(graph)(crops)
