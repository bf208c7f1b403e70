"""A picture of crops and the cosine similarity of their embeddings."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from arcface_client.contract import Crops, Embeddings


def similarity_figure(crops: Crops, embeddings: Embeddings) -> Figure:
    """Draw the crops along two sides of their similarity matrix.

    Args:
        crops: uint8 [N, 112, 112, 3], BGR.
        embeddings: float32 [N, D], rows of length one.
    """
    count = len(crops)
    similarity = embeddings @ embeddings.T
    figure = Figure(figsize=(1.1 * (count + 1), 1.1 * (count + 1)), layout="compressed")
    grid = figure.subplots(count + 1, count + 1)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_frame_on(False)
    for index, crop in enumerate(np.flip(crops, axis=-1)):
        grid[0, index + 1].imshow(crop)
        grid[index + 1, 0].imshow(crop)
    for row in range(count):
        for column in range(count):
            axes = grid[row + 1, column + 1]
            value = float(similarity[row, column])
            axes.imshow([[value]], cmap="RdBu_r", vmin=-1, vmax=1)
            axes.text(
                0, 0, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black"
            )
    figure.suptitle("Cosine similarity of the embeddings")
    return figure
