"""Seeded crops for calibration and accuracy checks without a photograph: face-like ones, textures, noise."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from arcface_client.contract import CROP_SHAPE, CROP_SIZE, Crops
from arcface_client.models.golden import golden_crops

LEAST_CROPS = 256
"""Crops that a plan is compared on, at least."""

_SEED: Final = 2  # of the crops that fill up real ones
_Rows = npt.NDArray[np.float64]  # one value per crop, shaped to broadcast over [N, 112, 112]


def face_like(count: int, seed: int = 0) -> Crops:
    """Draw crops with the layout of an aligned face: skin, hair, eyes, nose, mouth, light from a side.

    Each crop has its own colours, proportions, background and sensor noise, so that two crops differ about as
    much as two photographs. The same seed gives the same crops on every machine, since NumPy promises never
    to change the stream of ``RandomState``.

    Returns:
        uint8 [N, 112, 112, 3], BGR.
    """
    random = np.random.RandomState(seed)
    vertical, horizontal = np.mgrid[0:CROP_SIZE, 0:CROP_SIZE].astype(np.float64)

    def uniform(low: float, high: float) -> _Rows:
        return random.uniform(low, high, (count, 1, 1))

    def ellipse(centre_y: _Rows, centre_x: _Rows, radius_y: _Rows, radius_x: _Rows) -> _Rows:
        """Weight [N, 112, 112] that is 1 inside and falls to 0 over a soft edge."""
        distance = np.hypot((vertical - centre_y) / radius_y, (horizontal - centre_x) / radius_x)
        return np.asarray(np.clip((1.1 - distance) / 0.2, 0, 1))

    def colour(low: float, high: float) -> _Rows:
        return random.uniform(low, high, (count, 1, 1, 3))

    def paint(weight: _Rows, paint_colour: _Rows) -> None:
        image[:] += weight[..., np.newaxis] * (paint_colour - image)

    tilt = uniform(-1, 1) * (vertical - 56) + uniform(-1, 1) * (horizontal - 56)
    image = colour(0, 255) + colour(-1, 1) * tilt[..., np.newaxis]
    centre_y, centre_x = uniform(54, 66), uniform(50, 62)
    skin = np.sort(colour(60, 235), axis=-1)  # blue < green < red: the hues of skin

    paint(ellipse(centre_y - 14, centre_x, uniform(50, 70), uniform(40, 60)), colour(5, 160))  # hair
    paint(ellipse(centre_y + 4, centre_x, uniform(46, 60), uniform(34, 46)), skin)
    # Where alignment puts the landmarks: eyes in row 52 at columns 38 and 74, nose (72, 56), mouth row 92.
    for side in (-1, 1):
        eye_y, eye_x = 52 + uniform(-3, 3), 56 + side * uniform(16, 20)
        paint(
            ellipse(eye_y - uniform(8, 12), eye_x, uniform(1, 4), uniform(7, 12)),
            skin * uniform(0.1, 0.8)[..., np.newaxis],
        )
        paint(ellipse(eye_y, eye_x, uniform(3, 5), uniform(6, 9)), colour(180, 255))
        paint(ellipse(eye_y, eye_x + uniform(-2, 2), uniform(2, 4), uniform(2, 4)), colour(0, 110))
    paint(
        ellipse(72 + uniform(-4, 4), uniform(52, 60), uniform(6, 14), uniform(3, 8)),
        skin * uniform(0.7, 1.1)[..., np.newaxis],
    )
    paint(ellipse(92 + uniform(-3, 3), uniform(53, 59), uniform(2, 8), uniform(10, 20)), colour(20, 200))

    light = (
        uniform(0.6, 1.2)
        + uniform(-0.5, 0.5) * (horizontal - 56) / 56
        + uniform(-0.2, 0.2) * (vertical - 56) / 56
    )
    image *= light[..., np.newaxis]
    image += random.normal(0, 1, image.shape) * uniform(1, 12)[..., np.newaxis]
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def texture(count: int, seed: int = 0) -> Crops:
    """Draw crops with the statistics of photographs: amplitude falls as 1/f, colours are correlated.

    Field 1987, "Relations between the statistics of natural images and the response properties of cortical
    cells".

    Returns:
        uint8 [N, 112, 112, 3].
    """
    random = np.random.RandomState(seed)
    cycles = np.fft.fftfreq(CROP_SIZE)
    frequency = np.maximum(np.hypot(cycles, cycles[:, np.newaxis]), 1 / CROP_SIZE)[..., np.newaxis]
    white = random.standard_normal((count, CROP_SIZE, CROP_SIZE, 3))
    pink = np.fft.ifft2(np.fft.fft2(white, axes=(1, 2)) / frequency, axes=(1, 2)).real
    mean = np.broadcast_to(pink.mean(axis=-1, keepdims=True), pink.shape)
    grey, colour = (field / field.std(axis=(1, 2, 3), keepdims=True) for field in (mean, pink))
    contrast, light = random.uniform(20, 60, (count, 1, 1, 1)), random.uniform(60, 190, (count, 1, 1, 1))
    return np.asarray(np.clip(np.rint(light + contrast * (0.9 * grey + 0.4 * colour)), 0, 255), np.uint8)


def noise(count: int, seed: int = 0) -> Crops:
    """Draw crops of independent uniform pixels: uint8 [N, 112, 112, 3]."""
    random = np.random.RandomState(seed)
    return np.asarray(random.randint(0, 256, (count, CROP_SIZE, CROP_SIZE, 3)), np.uint8)


def comparison_crops(real: Crops | None = None, *, in_int8: bool = False) -> Crops:
    """Give the crops to compare a plan on: real ones, filled up to ``LEAST_CROPS`` with generated ones.

    Args:
        real: uint8 [N, 112, 112, 3], if there are any.
        in_int8: Whether the plan's ranges hold for faces alone: real crops and the golden ones, nothing else.
    """
    if in_int8 and real is not None:
        return np.concatenate([real, golden_crops()])
    given = np.empty((0, *CROP_SHAPE), np.uint8) if real is None else real
    missing = max(0, LEAST_CROPS - len(given))
    noises = missing // 8
    return np.concatenate([given, face_like(missing - noises, _SEED), noise(noises, _SEED)])
