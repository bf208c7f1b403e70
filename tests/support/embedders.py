"""Embed functions for tests: a graph in ONNX Runtime, and one that gives all crops the same embedding."""

from __future__ import annotations

import numpy as np

from arcface_builder.graph.edit import session
from arcface_client.contract import INPUT_NAME, Crops, Embeddings
from arcface_client.runtimes.base import Embed


def embedder(graph: bytes) -> Embed:
    loaded = session(graph)

    def embed(crops: Crops) -> Embeddings:
        return loaded.run(None, {INPUT_NAME: crops})[0]  # type: ignore[no-any-return]

    return embed


def alike(crops: Crops) -> Embeddings:
    return np.full((len(crops), 512), 512**-0.5, np.float32)
