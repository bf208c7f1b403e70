"""Verification sets in the formats that InsightFace's tools and others write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from arcface_client.contract import Crops
from arcface_client.models.golden import golden_crops
from support.image_files import encoded

PYTHON_2: Final = Path(__file__).parent / "../client/evaluation/python2.bin"
"""Two pairs of crops of one colour each, the first pair the same, written by Python 2.7:
``cPickle.dump((images, [True, False]), file, protocol=cPickle.HIGHEST_PROTOCOL)``."""

PYTHON_2_TEXT: Final = PYTHON_2.with_name("python2_text.bin")
"""The same without a protocol, which is Python 2's text format."""


def pairs(count: int) -> tuple[list[bytes], list[bool]]:
    """Pairs of golden crops with some noise, every other one of the same."""
    random, golden = np.random.default_rng(0), golden_crops()
    images: list[bytes] = []
    same = [index % 2 == 0 for index in range(count)]
    for is_same in same:
        first = int(random.integers(len(golden)))
        second = first if is_same else (first + int(random.integers(1, len(golden)))) % len(golden)
        images += [encoded(_noisy(golden[who], random), "jpeg") for who in (first, second)]
    return images, same


def many_pairs(count: int) -> tuple[list[bytes], list[bool]]:
    """All pairs of some images of the golden crops with noise, in an order that mixes them."""
    random, golden = np.random.default_rng(0), golden_crops()
    images = [encoded(_noisy(golden[index % len(golden)], random), "jpeg") for index in range(count)]
    every = [(one, other) for one in range(count) for other in range(one)]
    random.shuffle(every)
    same = [not (one - other) % len(golden) for one, other in every]
    return [images[index] for pair in every for index in pair], same


def _noisy(crop: Crops, random: np.random.Generator) -> Crops:
    return np.asarray(np.clip(crop + random.normal(0, 12, crop.shape), 0, 255), np.uint8)


def as_opencv(images: Sequence[bytes]) -> list[npt.NDArray[np.uint8]]:
    """As ``cv2.imencode`` gives them, and many sets hold them."""
    return [np.frombuffer(image, np.uint8).copy() for image in images]
