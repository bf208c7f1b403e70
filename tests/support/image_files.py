"""Crops as image files."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from arcface_client.contract import Crops


def encoded(crop: Crops, kind: str = "png") -> bytes:
    """A crop in BGR as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(crop[..., ::-1]).save(file, kind, quality=95)
    return file.getvalue()


def save_crops(folder: Path, crops: Crops, name: str = "{:03}.png") -> Path:
    """Save crops in BGR, each named by its number; the folder is made if it is missing."""
    folder.mkdir(exist_ok=True)
    for number, crop in enumerate(crops):
        (folder / name.format(number)).write_bytes(encoded(crop))
    return folder
