"""The crops that perf_analyzer sends."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Final

import numpy as np

from arcface_client.contract import CROP_SHAPE, CROP_SIZE, INPUT_NAME, Crops
from arcface_client.errors import ImageFileError
from arcface_client.evaluation.images import find_images, read_crop

CROP_COUNT: Final = 32
"""How many different crops are sent in turn; that many at most are read from a folder."""

_CELL: Final = 8


def load_crops(folder: Path | None) -> Crops:
    """Read crops from a folder, or draw patches of colour where there is none.

    What is on a crop does not change how long a network takes; that they differ keeps a response
    cache from answering.

    Raises:
        ImageFileError: The folder has no image, or one that is no crop.
    """
    if folder is None:
        cells = CROP_SIZE // _CELL
        patches = np.random.default_rng(0).integers(0, 256, (CROP_COUNT, cells, cells, 3), np.uint8)
        return patches.repeat(_CELL, axis=1).repeat(_CELL, axis=2)
    crops = [read_crop(file) for file in itertools.islice(find_images([folder]), CROP_COUNT)]
    if not crops:
        raise ImageFileError(f"There is no image in {folder}; expected face crops of 112x112.")
    return np.stack(crops)


def write_input_data(crops: Crops, file: Path) -> None:
    """Write crops as perf_analyzer reads them; it sends them in turn, and builds its batches from them."""
    steps = [
        {INPUT_NAME: {"b64": base64.b64encode(crop.tobytes()).decode("ascii"), "shape": list(CROP_SHAPE)}}
        for crop in crops
    ]
    file.write_text(json.dumps({"data": steps}))
