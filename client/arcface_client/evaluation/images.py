"""Face crops from image files, with the pixels that OpenCV's ``imread`` gives."""

from __future__ import annotations

import functools
import importlib
import io
import os
import struct
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..contract import CROP_SIZE, Crops
from ..errors import DAMAGE, ImageFileError, require

SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Files of a folder that are read as images; a file that is named itself is always read."""

_ORIENTATION: Final = 0x0112
_JPEG: Final = b"\xff\xd8\xff"


def search(folder: str, suffixes: Collection[str] = SUFFIXES) -> Iterator[str]:
    """Yield the files below a folder in the order of their names; only one folder's names are held at a time.

    Links to files are followed, also broken ones, so that reading them fails visibly. Links to folders are
    not followed.

    Args:
        folder: Where to search.
        suffixes: What a file's name must end in, in lower case.

    Raises:
        ImageFileError: A folder is not there, or cannot be read.
    """
    names, folders = list[str](), list[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                # Opening a pipe would wait for ever.
                elif os.path.splitext(entry.name)[1].lower() in suffixes and (  # noqa: PTH122, millions of them
                    entry.is_symlink() or entry.is_file()
                ):
                    names.append(entry.name)
    except OSError as error:
        # Crops would be missing unnoticed.
        raise ImageFileError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    start = os.path.join(folder, "")  # noqa: PTH118
    yield from (start + name for name in sorted(names))
    for name in sorted(folders):
        yield from search(start + name, suffixes)


def read_crop(image: str | Path | bytes, *, name: str | None = None, resize: bool = False) -> Crops:
    """Read one face crop, as ``cv2.imread`` does in its colour mode.

    The rotation that a camera notes in EXIF is applied. Transparency is dropped, and of 16 bits a channel
    the upper 8 are taken.

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
    try:
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
    except OSError as error:
        raise ImageFileError(f"{name} cannot be read as an image: {error.strerror or error}.") from error
    crop = _plain_jpeg(content)
    if crop is not None:
        return crop
    pillow = require("PIL.Image", extra="cli", purpose="Reading images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd tags beside the pixels
            file = pillow.open(io.BytesIO(content))
        with file:
            if not resize and file.size != (CROP_SIZE, CROP_SIZE):
                raise ImageFileError(
                    f"{name} is {file.width}x{file.height}; expected an aligned crop of 112x112. "
                    "Align it with insightface.utils.face_align.norm_crop; embed and compare also scale it "
                    "with --resize."
                )
            exif = file.info.get("exif", b"")  # Pillow turns TIFF itself
            rgb = _upright(_rgb(file), _orientation(exif))
    except ImageFileError:
        raise
    except pillow.UnidentifiedImageError as error:
        why = "its format is unknown" if content else "it is empty"
        raise ImageFileError(f"{name} cannot be read as an image: {why}.") from error
    except (*DAMAGE, pillow.DecompressionBombError) as error:
        raise ImageFileError(f"{name} cannot be read as an image: {error}") from error
    if rgb.shape != (CROP_SIZE, CROP_SIZE, 3):
        scaled = pillow.fromarray(rgb).resize((CROP_SIZE, CROP_SIZE), pillow.Resampling.BILINEAR)
        rgb = np.asarray(scaled, np.uint8)
    return np.ascontiguousarray(rgb[..., ::-1])


def _plain_jpeg(content: bytes) -> Crops | None:
    """Decode what most crops are, four times as fast as Pillow and to the same pixels; None for all else."""
    library = _simplejpeg()
    # CMYK and files that a camera rotated are left to Pillow, and so is the error of a damaged file.
    if library is None or not content.startswith(_JPEG) or b"Exif" in content:
        return None
    try:
        height, width, colorspace, _ = library.decode_jpeg_header(content)
        if (height, width) != (CROP_SIZE, CROP_SIZE) or colorspace in ("CMYK", "YCCK"):
            return None
        crop: Crops = library.decode_jpeg(content, colorspace="BGR")
    except ValueError:
        return None
    return crop


@functools.cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:  # it is in the extra `bulk` alone
        return None


def _rgb(file: Any) -> npt.NDArray[np.uint8]:
    """The pixels of an open image, uint8 [H, W, 3]; Pillow's own conversion where OpenCV's is the same."""
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format == "PNG"):
        grey = np.asarray(file) >> 8
        return np.repeat(grey[..., np.newaxis], 3, axis=-1).astype(np.uint8)
    if file.mode in ("I", "F"):
        raise ValueError("it has 32 bits a pixel; expected 8 or 16.")
    if file.mode == "CMYK":
        inverse = 255 - np.asarray(file).astype(np.int32)
        colour, black = inverse[..., :3], inverse[..., 3:]
        return (black - ((255 - colour) * black >> 8)).astype(np.uint8)
    if file.mode == "RGBA" and file.format == "TIFF":  # laid on black
        pixels = np.asarray(file).astype(np.int32)
        return ((pixels[..., :3] * pixels[..., 3:] + 127) // 255).astype(np.uint8)
    return np.asarray(file.convert("RGB"), np.uint8)


def _orientation(exif: bytes) -> int:
    """How the camera was turned, 1 to 8, from an EXIF block; 1 where the block is damaged."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", block, place)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:  # it ends before what it announces
        pass
    return 1


def _upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    down, right = (-1 if orientation in turned else 1 for turned in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return pixels[::down, ::right]
