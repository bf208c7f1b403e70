"""What happens to pixels before a network: by its caller, and how the projects of the field do it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ..contract import Crops
from ..errors import InputError

Triple = tuple[float, float, float]
"""One value for each of R, G and B."""

Channels = Literal["RGB", "BGR"]

_WRITTEN: Final = re.compile(r"(?:\(x *- *(.+)\)|x) */ *(.+?)(?: for R, G, B)?")
"""What ``str`` of a normalisation gives."""

_LARGEST: Final = 256
"""A network's input is smaller: raw pixels are 255 at most."""


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std of pixels x in 0 to 255, per channel in the order R, G, B."""

    mean: Triple
    std: Triple

    @classmethod
    def uniform(cls, mean: float, std: float) -> Normalisation:
        """Make a normalisation that is the same for all channels."""
        return cls((mean,) * 3, (std,) * 3)

    @classmethod
    def parse(cls, text: str) -> Normalisation:
        """Read a name, "MEAN,STD" as in "127.5,128", or six numbers: mean of R, G, B, then std of R, G, B.

        What ``str`` gives is read, too, for example "(x - 127.5) / 128".

        Raises:
            InputError: The text is something else, std is 0, or the numbers are for pixels of 0 to 1.
        """
        if text in NAMED:
            return NAMED[text]
        plain = text.strip().replace("\N{MINUS SIGN}", "-")
        if written := _WRITTEN.fullmatch(plain):
            plain = re.sub(r"[][]", "", f"{written[1] or 0},{written[2]}")
        try:
            numbers = [float(part) for part in plain.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 2:
            numbers = [number for number in numbers for _ in range(3)]
        if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or 0 in numbers[3:]:
            raise InputError(
                f"Normalisation {text!r} is not MEAN,STD with finite numbers and std other than 0; expected "
                f"one of {', '.join(NAMED)}, or e.g. 127.5,128, or the mean of R, G, B and then their std."
            )
        mean_r, mean_g, mean_b, std_r, std_g, std_b = numbers
        if any(
            max(abs(mean), abs(255 - mean)) > _LARGEST * abs(std)
            for mean, std in zip(numbers[:3], numbers[3:], strict=True)
        ):
            raise InputError(
                f"Normalisation {text!r} is on the scale of 0 to 1; pixels are 0 to 255: multiply it by 255, "
                "as 0.5,0.5 is 127.5,127.5, or give imagenet, pytorch or unit."
            )
        return cls((mean_r, mean_g, mean_b), (std_r, std_g, std_b))

    def to_argument(self) -> str:
        """Write what ``parse`` reads, to the last digit."""
        uniform = len({*self.mean}) == len({*self.std}) == 1
        numbers = (self.mean[0], self.std[0]) if uniform else (*self.mean, *self.std)
        return ",".join(repr(float(number)) for number in numbers)

    def of_channels(self, channels: str) -> Normalisation:
        """Read mean and std as those of these channels, for example "BGR"."""
        red, green, blue = (channels.index(channel) for channel in "RGB")
        mean, std = self.mean, self.std
        return Normalisation((mean[red], mean[green], mean[blue]), (std[red], std[green], std[blue]))

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


@dataclass(frozen=True)
class Pixels:
    """What a caller of a network does with pixels.

    Attributes:
        channels: The channel order that the network takes.
        normalisation: What is done to R, G and B.
    """

    channels: Channels
    normalisation: Normalisation

    def planes(self, crops: Crops) -> npt.NDArray[np.float32]:
        """Prepare crops, uint8 [N, 112, 112, 3] BGR: float32 [N, 3, 112, 112] in the network's order."""
        planes = self.normalisation.apply(crops)
        return planes if self.channels == "RGB" else np.ascontiguousarray(planes[:, ::-1])

    def arguments(self) -> str:
        """The flags of ``arcface-builder build`` and ``arcface-client compare`` that say so."""
        return f"--color {self.channels.lower()} --normalisation {self.normalisation.to_argument()}"

    def __str__(self) -> str:
        return f"{self.channels}, {self.normalisation}"


RAW: Final = Normalisation.uniform(0, 1)
"""Pixels 0 to 255 as they are."""

UNIT: Final = Normalisation.uniform(0, 255)
"""Pixels as 0 to 1."""

PYTORCH: Final = Normalisation.uniform(127.5, 127.5)
"""Pixels as -1 to 1: arcface_torch and InsightFace's packs."""

MXNET: Final = Normalisation.uniform(127.5, 128)
"""Pixels as nearly -1 to 1, as MXNet's users multiply by 0.0078125."""

IMAGENET: Final = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""ImageNet's mean and std, as torchvision's and timm's networks want."""

NAMED: Final[Mapping[str, Normalisation]] = {
    "raw": RAW,
    "unit": UNIT,
    "pytorch": PYTORCH,
    "mxnet": MXNET,
    "imagenet": IMAGENET,
}

FAMILIES: Final[Mapping[str, tuple[str, Normalisation]]] = {
    "arcface": ("rgb", PYTORCH),  # arcface_torch/inference.py
    "adaface": ("bgr", PYTORCH),  # inference.py, to_input
    "magface": ("bgr", UNIT),  # inference/gen_feat.py: cv2.imread, ToTensor
    "keras_insightface": ("rgb", MXNET),  # evals.py
    "sface": ("rgb", RAW),  # OpenCV's FaceRecognizerSF, blobFromImage with swapRB
}
"""Channel order and normalisation that a project's own code gives its networks."""
