"""Face crops from image files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ..contract import CROP_SIZE, Crops
from ..errors import ImageFileError, require

_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
"""Pillow's modes with at most 8 bits a channel, and those of 16-bit colour, of which it takes the upper 8
bits as OpenCV does. Grey with more bits would be clipped to white on the way to RGB."""

SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Files of a folder that are read as images; a file that is named itself is always read."""


@dataclass
class PassedOver:
    """What a search of folders skipped."""

    other_files: int = 0
    linked_folders: int = 0

    def __str__(self) -> str:
        return f"{self.other_files} files of other types and {self.linked_folders} linked folders"


def find_images(paths: Iterable[Path], passed_over: PassedOver | None = None) -> Iterator[str]:
    """Yield files as they are named, and the images below folders in the order of their names.

    Links to files are followed, also broken ones, so that reading them fails visibly. Links to folders are
    not followed.

    Args:
        paths: Files and folders.
        passed_over: Counts what was skipped.

    Raises:
        ImageFileError: A path does not exist.
    """
    for path in paths:
        if path.is_dir():
            yield from _search(path, passed_over or PassedOver())
        elif path.exists():
            yield str(path)
        else:
            raise ImageFileError(f"There is no file or folder {path}.")


def _search(top: Path, passed_over: PassedOver) -> Iterator[str]:
    for parent, folders, names in os.walk(top, onerror=_refuse):
        folder = Path(parent)
        folders.sort()
        passed_over.linked_folders += sum((folder / name).is_symlink() for name in folders)
        for name in sorted(names):
            path = folder / name
            # Opening a pipe would wait for ever.
            if path.suffix.lower() in SUFFIXES and (path.is_file() or path.is_symlink()):
                yield str(path)
            else:
                passed_over.other_files += 1


def _refuse(error: OSError) -> None:
    # By default os.walk skips folders that it cannot read, and crops would be missing unnoticed.
    raise ImageFileError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error


def read_crop(image: str | Path | bytes, *, name: str | None = None, resize: bool = False) -> Crops:
    """Read one face crop.

    Args:
        image: An image file, or its bytes, in any format that Pillow reads.
        name: What to call the image in an error; None gives the file's path.
        resize: Scale an image of another size to 112x112 instead of refusing it.

    Returns:
        uint8 [112, 112, 3], BGR.

    Raises:
        ImageFileError: It is not an image, or has another size.
        MissingExtraError: Pillow is not installed.
    """
    name = name or ("the image" if isinstance(image, bytes) else str(image))
    pillow = require("PIL.Image", extra="cli", purpose="Reading images")
    operations = require("PIL.ImageOps", extra="cli", purpose="Reading images")
    try:
        with pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image) as file:
            if file.mode not in _MODES:
                raise ImageFileError(
                    f"{name} is grey with more than 8 bits a pixel (Pillow's mode {file.mode}), which would "
                    "be clipped; expected colour, or grey with 8 bits."
                )
            if not resize and file.size != (CROP_SIZE, CROP_SIZE):
                raise ImageFileError(
                    f"{name} is {file.width}x{file.height}; expected an aligned crop of 112x112. "
                    "Align it with insightface.utils.face_align.norm_crop; embed and compare also scale it "
                    "with --resize."
                )
            # Cameras store the rotation beside the pixels; OpenCV applies it (for WebP from 4.13 on), Pillow
            # only when asked.
            upright = operations.exif_transpose(file).convert("RGB")
    except ImageFileError:
        raise
    except pillow.UnidentifiedImageError as error:
        raise ImageFileError(f"{name} cannot be read as an image: its format is unknown.") from error
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise ImageFileError(f"{name} cannot be read as an image: {error}") from error
    if upright.size != (CROP_SIZE, CROP_SIZE):
        upright = upright.resize((CROP_SIZE, CROP_SIZE), pillow.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(upright, np.uint8)[..., ::-1])
