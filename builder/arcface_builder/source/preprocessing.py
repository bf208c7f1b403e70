"""Input preprocessing: what a graph does to pixels before its first convolution.

It is measured: the part up to the first convolution is cut out and run on a few probing images. So it does
not matter whether it is written as Sub and Mul, as Add and Div or as a BatchNormalization, or with a Cast, a
Transpose or a Gather of the channels in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from arcface_client.contract import CROP_SIZE
from arcface_client.models.normalisation import PYTORCH, RAW, UNIT, Normalisation, Triple
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..graph.edit import values_of
from ..graph.signature import Image

_LARGEST_DEVIATION: Final = 3.0
"""How far an end of the network's input range may lie from -1 and 1."""

_LARGEST_RATIO: Final = 16.0
"""How much narrower or wider than expected the network's input range may be."""

_PROBE: Final = 255.0
_DIGITS: Final = 7  # of mean and std, as many as float32 has
_TOLERANCE: Final = 1e-3

_FIRST_LAYERS: Final = ("Conv", "ConvInteger", "QLinearConv", "QuantizeLinear", "DynamicQuantizeLinear")
"""Operators of which the first one ends the preprocessing."""


@dataclass(frozen=True)
class InputPreprocessing:
    """What a graph does to its input: channel c of the network sees (x[order[c]] - mean[c]) / std[c].

    Attributes:
        normalisation: Mean and std by network channel.
        order: Which channel of the graph's input each network channel sees.
    """

    normalisation: Normalisation
    order: tuple[int, int, int]

    @property
    def input_channels(self) -> str:
        """Channel order of the input if the network's is RGB: "BGR" for a graph that reverses them itself."""
        return "".join("RGB"[self.order.index(channel)] for channel in range(3))


def expected_of_caller(graph: Normalisation) -> tuple[Normalisation, bool]:
    """Infer what a caller must do before a graph that continues with a normalisation of its own.

    ArcFace networks are trained on inputs of about -1 to 1. So it is the customary normalisation after which
    the network's input is nearest to that range.

    Returns:
        The normalisation, and whether the range is near enough to be sure.
    """

    def deviation(caller: Normalisation) -> float:
        total = caller.then(graph)
        black, white = ((pixel - np.array(total.mean)) / np.array(total.std) for pixel in (0, 255))
        return float(np.abs([black + 1, white - 1]).max())

    best = min((PYTORCH, RAW, UNIT), key=deviation)
    return best, deviation(best) <= _LARGEST_DEVIATION


def contradicts(stated: Normalisation, graph: Normalisation) -> Normalisation | None:
    """What a graph's callers give it, if a stated normalisation would make its input far narrower or wider.

    Done twice, a normalisation gives the network an image of one grey, or one a hundred times too bright.
    """
    expected, sure = expected_of_caller(graph)
    ratios = np.abs(np.divide(stated.std, expected.std))
    far = np.max(np.maximum(ratios, 1 / ratios)) > _LARGEST_RATIO
    return expected if graph != RAW and sure and far else None


def read_preprocessing(model: ir.Model, image: Image) -> InputPreprocessing | None:
    """Measure what a graph does before its first convolution; None if that does not normalise by channel."""
    first = next((node for node in model.graph if node.op_type in _FIRST_LAYERS), None)
    target = first.inputs[0] if first is not None else None
    if target is None:
        return None
    if target is model.graph.inputs[0]:
        return InputPreprocessing(RAW, (0, 1, 2))

    # Black, one image for each pure channel, and noise to check the answer with.
    images = np.zeros((5, 3, CROP_SIZE, CROP_SIZE), np.float32)
    images[[1, 2, 3], [0, 1, 2]] = _PROBE
    images[4] = np.random.RandomState(0).randint(0, 256, images[4].shape)
    try:
        runs = [values_of(model, [str(target.name)], {image.name: image.prepare(one)})[0] for one in images]
    except RUN_ERRORS:
        return None
    seen = np.stack([run[0] if run.ndim else run for run in runs]).astype(np.float64)
    if seen.shape != images.shape:
        return None

    black = seen[0].mean(axis=(1, 2))
    gain = (seen[1:4].mean(axis=(2, 3)).T - black[:, np.newaxis]) / _PROBE  # [network, input]
    order = np.abs(gain).argmax(axis=1)
    scale = gain[range(3), order]
    if sorted(order) != [0, 1, 2] or not scale.all():
        return None
    normalisation = Normalisation(_triple(-black / scale), _triple(1 / scale))
    mean, std = (np.reshape(triple, (3, 1, 1)) for triple in (normalisation.mean, normalisation.std))
    if not np.allclose(seen[4], (images[4, order] - mean) / std, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    red, green, blue = order.tolist()
    return InputPreprocessing(normalisation, (red, green, blue))


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    # Adding zero turns -0.0 into 0.0.
    red, green, blue = (float(f"{value:.{_DIGITS}g}") + 0.0 for value in values)
    return red, green, blue
