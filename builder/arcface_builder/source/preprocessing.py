"""What a graph does to the image before its first convolution, found by trying it.

The part of the graph up to there is cut out and run on a few probing images. So it does not matter
whether it was written as Sub and Mul, Add and Div, a BatchNormalization, with a Cast or a Transpose
in between, a Gather, a Slice or a Split and Concat of the channels: what counts is what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from arcface_client.contract import CROP_SHAPE, CROP_SIZE
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..errors import NotArcFaceError
from ..graph.edit import first_convolution, first_line, image_dims, numpy_dtype, session
from .normalisation import RAW, Normalisation, Triple

_PROBE = 255.0
_DIGITS = 7  # of mean and std: what float32 tells apart
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Prefix:
    """The graph's own preprocessing: network channel c sees (x[order[c]] - mean[c]) / std[c].

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


def read_prefix(model: ir.Model) -> Prefix:
    """Find out what a graph with a free batch dimension does before its first convolution.

    Raises:
        NotArcFaceError: It is not a normalisation of each channel by itself.
    """
    image, target = model.graph.inputs[0], first_convolution(model).inputs[0]
    channels_last = image_dims(image) == CROP_SHAPE
    if target is image:
        return Prefix(RAW, (0, 1, 2), channels_last)

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
    return Prefix(normalisation, (red, green, blue), channels_last)


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
        f"What the graph does before its first convolution is no normalisation by channel: {what}. "
        "Export the backbone alone, without resizing, padding or augmentation."
    )
