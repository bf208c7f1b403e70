"""An embedder of fixed cost, which other processes can import."""

from __future__ import annotations

import time

import numpy as np

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.observability.diagnostics import Diagnostics, Served, Source
from arcface_client.triton.embed_request import EmbedRequest

SPACE = EmbeddingSpace(source_sha256="c0" * 32)
DIM = 16


def embeddings_of(crops: Crops) -> Embeddings:
    """What the stand-in gives: the colours of a few pixels."""
    rows = crops.reshape(len(crops), -1)[:, :: crops[0].size // DIM][:, :DIM].astype(np.float32) + 1
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class StandIn(EmbeddingBackend):
    """A model that takes a fixed time for a crop; it sleeps, as a process does while a GPU works."""

    def __init__(self, crop_s: float = 0.0) -> None:
        self._crop_s = crop_s

    def ensure_ready(self) -> None: ...

    def diagnostics(self) -> Diagnostics:
        return Diagnostics(backend="stand-in", model="stand_in", version=1)

    def space(self) -> EmbeddingSpace:
        return SPACE

    def close(self) -> None: ...

    def run(self, request: EmbedRequest) -> Served:
        crops = request.crops
        time.sleep(len(crops) * self._crop_s)
        request.set_width(DIM)
        if len(crops):
            request.fill(slice(0, len(crops)), embeddings_of(crops))
        return Served((Source("stand-in", "stand_in", 1, "this process", len(crops)),))
