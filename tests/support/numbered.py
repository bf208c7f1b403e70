"""Crops that tell their number, and what ``FakeTriton`` makes of them."""

from __future__ import annotations

import numpy as np

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM, Crops, Embeddings


def numbered(count: int) -> Crops:
    """Crops whose first byte is their number."""
    crops = np.zeros((count, *CROP_SHAPE), np.uint8)
    crops[:, 0, 0, 0] = np.arange(count)
    return crops


def spoilt(crops: Crops, *positions: int) -> Crops:
    """The same crops, of which some have embeddings that are not numbers."""
    crops = crops.copy()
    crops[list(positions), 0, 0, 1] = 255
    return crops


def unit_vectors(count: int) -> Embeddings:
    """The embedding of each of them."""
    return np.eye(count, EMBEDDING_DIM, dtype=np.float32)
