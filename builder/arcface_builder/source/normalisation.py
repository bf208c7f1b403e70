"""What happens to pixels before the first convolution, and who does it: the caller or the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from arcface_client.contract import Crops

from ..errors import NotArcFaceError, OptionError

Triple = tuple[float, float, float]
"""One value for each of R, G and B."""

_LARGEST_DEVIATION: Final = 3.0
"""How far an end of the network's input range may lie from -1 and 1."""

_LARGEST_RATIO: Final = 16.0
"""How much narrower or wider the network's input range may be than one that is as it should."""


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std of pixels x in 0 to 255, per channel in the order R, G, B."""

    mean: Triple
    std: Triple

    @classmethod
    def uniform(cls, mean: float, std: float) -> Normalisation:
        """Make one that is the same for all channels."""
        return cls((mean,) * 3, (std,) * 3)

    @classmethod
    def parse(cls, text: str) -> Normalisation:
        """Read "MEAN,STD", as in "127.5,128", or six numbers: mean of R, G, B, then std of R, G, B.

        Raises:
            OptionError: The text is something else, or std is 0.
        """
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 2:
            numbers = [number for number in numbers for _ in range(3)]
        if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or 0 in numbers[3:]:
            raise OptionError(
                f"Normalisation {text!r} is not MEAN,STD with finite numbers and std other than 0; "
                "expected e.g. 127.5,128."
            )
        mean_r, mean_g, mean_b, std_r, std_g, std_b = numbers
        return cls((mean_r, mean_g, mean_b), (std_r, std_g, std_b))

    def to_argument(self) -> str:
        """Write what ``parse`` reads, to the last digit."""
        uniform = len({*self.mean}) == len({*self.std}) == 1
        numbers = (self.mean[0], self.std[0]) if uniform else (*self.mean, *self.std)
        return ",".join(repr(float(number)) for number in numbers)

    def then(self, inner: Normalisation) -> Normalisation:
        """Compose: this one first (the caller's), then ``inner`` (the graph's)."""
        pairs = list(zip(self.mean, self.std, inner.mean, inner.std, strict=True))
        red, green, blue = (mean + std * inner_mean for mean, std, inner_mean, _ in pairs)
        red_std, green_std, blue_std = (std * inner_std for _, std, _, inner_std in pairs)
        return Normalisation((red, green, blue), (red_std, green_std, blue_std))

    def apply(self, crops: Crops) -> npt.NDArray[np.float32]:
        """Prepare crops as InsightFace's ``get_feat`` does: BGR bytes to normalised RGB planes.

        Args:
            crops: uint8 [N, 112, 112, 3], BGR.

        Returns:
            float32 [N, 3, 112, 112], RGB.
        """
        rgb = crops[..., ::-1].astype(np.float32)
        normalised = (rgb - np.array(self.mean, np.float32)) * (1 / np.array(self.std)).astype(np.float32)
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))

    def __str__(self) -> str:
        if len({*self.mean}) == len({*self.std}) == 1:
            mean, std = self.mean[0], self.std[0]
            if mean == 0:
                return "raw pixels 0 to 255" if std == 1 else f"x / {std:g}"
            return f"(x - {mean:g}) / {std:g}"
        return f"(x - {list(self.mean)}) / {list(self.std)} for R, G, B"


RAW: Final = Normalisation.uniform(0, 1)
"""Pixels 0 to 255 as they are."""

UNIT: Final = Normalisation.uniform(0, 255)
"""Pixels as 0 to 1."""

PYTORCH: Final = Normalisation.uniform(127.5, 127.5)
"""Pixels as -1 to 1: arcface_torch and InsightFace's packs."""


def expected_of_caller(graph: Normalisation) -> Normalisation:
    """Tell what a caller must do before a graph that goes on with a normalisation of its own.

    ArcFace networks are trained on inputs of about -1 to 1. So it is the one of the customary
    normalisations after which the network sees the range nearest to that: all of it if the graph does
    nothing, none of it if the graph wants bytes.

    Raises:
        NotArcFaceError: None of them comes near.
    """

    def deviation(caller: Normalisation) -> float:
        total = caller.then(graph)
        black, white = ((pixel - np.array(total.mean)) / np.array(total.std) for pixel in (0, 255))
        return float(np.abs([black + 1, white - 1]).max())

    best = min((PYTORCH, RAW, UNIT), key=deviation)
    if deviation(best) > _LARGEST_DEVIATION:
        raise NotArcFaceError(
            f"The graph normalises its input by {graph}, which fits none of the customary inputs "
            f"({RAW}; {UNIT}; {PYTORCH}); tell `arcface-builder build` what the caller does with "
            "--normalisation=MEAN,STD."
        )
    return best


def check_stated(stated: Normalisation, graph: Normalisation) -> None:
    """Refuse what callers are said to do where the graph shows that it cannot be so.

    A graph that does nothing leaves it open. One that goes on with a normalisation of its own does not: the
    two in a row would leave it an image of one grey, or one a hundred times too bright.

    Raises:
        OptionError: The network would see next to nothing, or far too much.
    """
    if graph == RAW:
        return
    try:
        expected = expected_of_caller(graph)
    except NotArcFaceError:
        return
    ratios = np.abs(np.divide(stated.std, expected.std))
    if np.max(np.maximum(ratios, 1 / ratios)) > _LARGEST_RATIO:
        raise OptionError(
            f"The graph goes on with {graph} itself, so its callers give it {expected}; "
            f"--normalisation={stated.to_argument()} says {stated}. Leave the flag out."
        )
