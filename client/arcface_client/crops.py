"""A pipeline's crops as one batch, or an error that says what to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .contract import CROP_SHAPE, Crops
from .errors import CropError

Color = Literal["bgr", "rgb"]
"""Channel order of the crops that a caller passes in."""

CropsLike = npt.NDArray[Any] | Sequence[npt.NDArray[Any]]
"""One uint8 array [N, 112, 112, 3], or a list of uint8 arrays [112, 112, 3]."""


def as_batch(crops: CropsLike, *, color: Color = "bgr") -> Crops:
    """Check crops and return them as one BGR batch.

    An array that is such a batch already is returned without a copy. Read-only and non-contiguous arrays
    are accepted.

    Args:
        crops: uint8 [N, 112, 112, 3], or a list of uint8 [112, 112, 3]; N may be 0.
        color: Channel order of ``crops``.

    Returns:
        C-contiguous uint8 [N, 112, 112, 3] in BGR order.

    Raises:
        CropError: A crop has another dtype or shape, or ``color`` is unknown.
    """
    if color not in ("bgr", "rgb"):
        raise CropError(f"color is {color!r}; expected 'bgr' (as OpenCV reads) or 'rgb' (as Pillow reads).")
    if not isinstance(crops, (np.ndarray, list, tuple)):
        raise CropError(
            f"crops is {type(crops).__name__}; expected an array or a list of arrays. Collect "
            f"crops in a list, or pass an iterator to `EmbeddingClient.stream`.{_pillow_hint(crops)}"
        )
    batch = _check_array(crops) if isinstance(crops, np.ndarray) else _stack(crops)
    if color == "rgb":
        batch = batch[..., ::-1]
    return np.ascontiguousarray(batch)


def _check_array(crops: npt.NDArray[Any]) -> Crops:
    if crops.shape == CROP_SHAPE:
        raise CropError(
            f"crops has the shape {CROP_SHAPE} of a single crop; pass [crop] or crop[np.newaxis]."
        )
    if crops.ndim != 4 or crops.shape[1:] != CROP_SHAPE:
        raise CropError(
            f"crops has shape {crops.shape}; expected (N, 112, 112, 3).{_shape_hint(crops.shape)}"
        )
    return _check_dtype(crops, "crops")


def _stack(crops: Sequence[npt.NDArray[Any]]) -> Crops:
    batch = np.empty((len(crops), *CROP_SHAPE), np.uint8)
    for index, crop in enumerate(crops):
        name = f"crops[{index}]"
        if not isinstance(crop, np.ndarray):
            raise CropError(
                f"{name} is {type(crop).__name__}; expected a numpy array, uint8 (112, 112, 3)."
                f"{_pillow_hint(crop)}"
            )
        if crop.shape != CROP_SHAPE:
            raise CropError(
                f"{name} has shape {crop.shape}; expected (112, 112, 3).{_shape_hint(crop.shape)}"
            )
        batch[index] = _check_dtype(crop, name)
    return batch


def _check_dtype(array: npt.NDArray[Any], name: str) -> Crops:
    if array.dtype == np.uint8:
        return array
    raise CropError(
        f"{name} has dtype {array.dtype}; expected uint8 with values 0 to 255. Pass the crop as it was cut "
        "from the image; the model normalises it."
    )


def _pillow_hint(value: object) -> str:
    is_pillow = type(value).__module__.startswith("PIL.")
    return " Of a Pillow image, pass numpy.asarray(image) with color='rgb'." if is_pillow else ""


def _shape_hint(shape: tuple[int, ...]) -> str:
    image = shape[-3:]
    if image[-1:] == (4,):
        return " Drop the alpha channel first: crop[..., :3]."
    if image[:1] == (3,):
        return " These are channels first; pass height, width, channels: crop.transpose(1, 2, 0)."
    if len(shape) == 2 or image[-1:] == (1,) or shape[1:] == CROP_SHAPE[:2]:
        return " ArcFace needs three channels; repeat a grey one: np.repeat(crop[..., None], 3, -1)."
    return " Align faces to 112x112 first, with insightface.utils.face_align.norm_crop."
