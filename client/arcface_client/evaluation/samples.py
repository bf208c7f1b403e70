"""The crops that systems are compared on: from a folder, or the golden crops in many variations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ..contract import Crops, Progress, no_progress
from ..errors import ImageFileError
from ..models.golden import golden_crops
from .images import read_crop, search

_log = logging.getLogger(__name__)

_SEED: Final = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Crops, and where they come from.

    Attributes:
        crops: uint8 [N, 112, 112, 3], BGR.
        names: One for each crop.
        origin: Where they come from, for the report.
        skipped: Files that could not be used.
    """

    crops: Crops
    names: Sequence[str]
    origin: str
    skipped: Sequence[str] = ()


def samples_from(
    folder: Path, count: int, *, resize: bool = False, progress: Progress = no_progress
) -> Samples:
    """Read crops from a folder.

    Args:
        folder: Where to search, subfolders included.
        count: How many files to take; they are taken evenly, so that all parts of the folder are seen.
        resize: Scale crops of another size instead of skipping them.
        progress: Called before each file.

    Raises:
        ImageFileError: The folder holds fewer than two crops.
        MissingExtraError: Pillow is not installed.
    """
    files = list(search(str(folder)))
    if not files:
        raise ImageFileError(f"There is no image in {folder}; give a folder of 112x112 face crops.")
    chosen = [files[index] for index in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]
    crops: dict[str, Crops] = {}
    skipped: list[str] = []
    for done, file in enumerate(chosen):
        progress("reading images", done / len(chosen))
        try:
            crops[file] = read_crop(file, resize=resize)
        except ImageFileError as error:
            _log.warning("skipped: %s", error)
            skipped.append(file)
    if len(crops) < 2:
        raise ImageFileError(
            f"{len(crops)} of {len(chosen)} files in {folder} are face crops; expected at least two, because "
            "one of the negative controls is another image."
        )
    return Samples(
        crops=np.stack(list(crops.values())), names=list(crops), origin=str(folder), skipped=skipped
    )


def generated_samples(count: int) -> Samples:
    """Vary the golden crops: mirrored, shifted, brighter or darker, with more or less contrast, and noisy.

    They are the same ones every time.
    """
    random = np.random.RandomState(_SEED)  # NumPy promises never to change this generator's stream
    golden = golden_crops()
    crops = np.empty((count, *golden.shape[1:]), np.uint8)
    for index in range(count):
        crop = golden[index % len(golden)].astype(np.float64)
        if index >= len(golden):  # the first crops are the golden crops themselves
            crop = crop[:, ::-1] if random.randint(2) else crop
            crop = np.roll(crop, random.randint(-6, 7, 2), axis=(0, 1))
            crop = (crop - 127.5) * random.uniform(0.6, 1.4) + 127.5 + random.uniform(-40, 40, 3)
            crop = crop + random.normal(0, random.uniform(0, 8), crop.shape)
        crops[index] = np.clip(np.rint(crop), 0, 255)
    names = [f"golden {index % len(golden)}, variation {index // len(golden)}" for index in range(count)]
    return Samples(crops=crops, names=names, origin=f"{len(golden)} golden crops varied, seed {_SEED}")
