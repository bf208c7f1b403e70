"""Input preprocessing: what happens to pixels before the first convolution, by the caller and by the graph.

What the graph does is measured: the part up to the first convolution is cut out and run on a few probing
images. So it does not matter whether it is written as Sub and Mul, as Add and Div or as a
BatchNormalization, or with a Cast, a Transpose or a Gather of the channels in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from arcface_client.contract import CROP_SHAPE, CROP_SIZE, Crops
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..errors import NotArcFaceError, OptionError
from ..graph.edit import first_convolution, first_line, image_dims, numpy_dtype, session

Triple = tuple[float, float, float]
"""One value for each of R, G and B."""

_LARGEST_DEVIATION: Final = 3.0
"""How far an end of the network's input range may lie from -1 and 1."""

_LARGEST_RATIO: Final = 16.0
"""How much narrower or wider than expected the network's input range may be."""

_PROBE: Final = 255.0
_DIGITS: Final = 7  # of mean and std, as many as float32 has
_TOLERANCE: Final = 1e-3


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


@dataclass(frozen=True)
class InputPreprocessing:
    """What a graph does to its input: channel c of the network sees (x[order[c]] - mean[c]) / std[c].

    Attributes:
        normalisation: Mean and std by network channel, which is R, G, B by ArcFace's convention.
        order: Which channel of the graph's input each network channel sees.
        channels_last: The graph's input is [N, 112, 112, 3], not [N, 3, 112, 112].
    """

    normalisation: Normalisation
    order: tuple[int, int, int]
    channels_last: bool

    @property
    def input_channels(self) -> str:
        """Channel order of the graph's input: "RGB", or "BGR" for a graph that reverses them itself."""
        return "".join("RGB"[self.order.index(channel)] for channel in range(3))


def expected_of_caller(graph: Normalisation) -> Normalisation:
    """Infer what a caller must do before a graph that continues with a normalisation of its own.

    ArcFace networks are trained on inputs of about -1 to 1. So it is the customary normalisation after which
    the network's input is nearest to that range.

    Raises:
        NotArcFaceError: No customary normalisation comes near.
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
    """Refuse a stated normalisation that the graph already does itself.

    Done twice, it would give the network an image of one grey, or one a hundred times too bright.

    Raises:
        OptionError: The network's input would be far narrower or wider than it must be.
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
            f"The graph itself does {graph}, so its callers give it {expected}; "
            f"--normalisation={stated.to_argument()} says {stated}. Leave the flag out."
        )


def read_preprocessing(model: ir.Model) -> InputPreprocessing:
    """Measure what a graph with a free batch dimension does before its first convolution.

    Raises:
        NotArcFaceError: It is not a normalisation by channel.
    """
    image, target = model.graph.inputs[0], first_convolution(model).inputs[0]
    channels_last = image_dims(image) == CROP_SHAPE
    if target is image:
        return InputPreprocessing(RAW, (0, 1, 2), channels_last)

    # Black, one image for each pure channel, and noise to check the answer with.
    images = np.zeros((5, 3, CROP_SIZE, CROP_SIZE), np.float32)
    images[[1, 2, 3], [0, 1, 2]] = _PROBE
    images[4] = np.random.RandomState(0).randint(0, 256, images[4].shape)
    seen = _run(model, images, channels_last).astype(np.float64)
    if seen.shape != images.shape:
        raise _not_a_normalisation(f"it turns {list(images.shape[1:])} into {list(seen.shape[1:])}")

    black = seen[0].mean(axis=(1, 2))
    gain = (seen[1:4].mean(axis=(2, 3)).T - black[:, np.newaxis]) / _PROBE  # [network, input]
    order = np.abs(gain).argmax(axis=1)
    scale = gain[range(3), order]
    if sorted(order) != [0, 1, 2] or not scale.all():
        raise _not_a_normalisation("it mixes the colour channels")
    normalisation = Normalisation(_triple(-black / scale), _triple(1 / scale))
    mean, std = (np.reshape(triple, (3, 1, 1)) for triple in (normalisation.mean, normalisation.std))
    if not np.allclose(seen[4], (images[4, order] - mean) / std, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise _not_a_normalisation("it is not the same linear function at every pixel")
    red, green, blue = order.tolist()
    return InputPreprocessing(normalisation, (red, green, blue), channels_last)


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    # Adding zero turns -0.0 into 0.0.
    red, green, blue = (float(f"{value:.{_DIGITS}g}") + 0.0 for value in values)
    return red, green, blue


def _run(model: ir.Model, images: npt.NDArray[np.float32], channels_last: bool) -> npt.NDArray[np.float32]:
    cut = model.clone()
    graph = cut.graph
    target = first_convolution(cut).inputs[0]
    if target is None:
        raise ValueError("A convolution without input.")
    target.dtype = ir.DataType.FLOAT
    graph.outputs[:] = [target]
    passes.RemoveUnusedNodesPass()(cut)
    layout = images.transpose(0, 2, 3, 1) if channels_last else images
    image = graph.inputs[0]
    try:
        (seen,) = session(cut).run(None, {image.name: layout.astype(numpy_dtype(image))})
    except RUN_ERRORS as error:
        raise _not_a_normalisation(f"ONNX Runtime cannot run it ({first_line(error)})") from error
    return np.asarray(seen, np.float32)


def _not_a_normalisation(what: str) -> NotArcFaceError:
    return NotArcFaceError(
        f"What the graph does before its first convolution is not a normalisation by channel: {what}. "
        "Export the backbone alone, without resizing, padding or augmentation."
    )
