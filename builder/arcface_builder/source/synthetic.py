"""IResNets with seeded random weights: they recognise no one, but compute like the real ones.

Random weights alone are not enough. Activations would grow from block to block beyond the range of FP16,
and all images would have nearly the same embedding, so that no comparison of two runtimes could fail.
Batch-norm statistics prevent both, as in training: one forward pass over generated crops measures them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from arcface_client.contract import CROP_SIZE
from arcface_client.models.normalisation import PYTORCH

from ..check.crops import face_like, noise, texture
from ..graph.edit import session
from .iresnet import BLOCKS, CHANNELS, EPSILON, flat_features, model_of, parameter_shapes

_PRELU_SLOPE = 0.25
_FACES, _TEXTURES, _NOISES = 90, 40, 8  # crops of the calibration pass
_MOST_TEXTURE = 0.6  # of a face's pixels
_COMMON_DIRECTIONS = 64

# Keeps the calibration crops apart from those that tests and accuracy checks draw with small seeds, since
# the network is fitted to the calibration crops.
_SEED_OFFSET = 1_000_000_007

_Array = npt.NDArray[np.float32]


def synthetic_weights(depth: str, seed: int) -> dict[str, _Array]:
    """Draw the weights of a network.

    Args:
        depth: A key of ``iresnet.BLOCKS``.
        seed: The same seed gives the same weights on one machine, and embeddings that agree to 1e-4 on all:
            the draws are the same everywhere; the statistics differ by the order of float32 sums.

    Returns:
        float32 parameters by their name in the state dict.
    """
    # RandomState, because its stream is the one that NumPy promises never to change.
    random = np.random.RandomState(seed)
    shapes = parameter_shapes(depth)
    weights = {name: _draw(random, name, shape) for name, shape in shapes.items()}
    statistics, flat = _measure(depth, weights, _calibration_batch(seed))
    weights.update(statistics)
    weights["fc.weight"] = _without_common_directions(weights["fc.weight"], flat)
    features = flat @ weights["fc.weight"].T
    weights["features.running_mean"] = features.mean(axis=0)
    weights["features.running_var"] = features.var(axis=0)
    return weights


def with_uneven_channels(weights: dict[str, _Array], depth: str, seed: int) -> dict[str, _Array]:
    """Scale the channels of the feature maps, and undo it where they are read: the embeddings stay.

    Factors are log-normal, so that the largest of a layer is some hundred times the smallest, as trained
    networks have them. Random weights alone have even channels, which hide what int8 does to uneven ones.
    """
    random, uneven = np.random.RandomState(seed), dict(weights)

    def write(norm: str, factor: _Array) -> None:
        for field in ("weight", "bias"):
            uneven[f"{norm}.{field}"] = uneven[f"{norm}.{field}"] * factor

    def read(norm: str, factor: _Array) -> None:
        uneven[f"{norm}.running_mean"] = uneven[f"{norm}.running_mean"] * factor
        uneven[f"{norm}.running_var"] = uneven[f"{norm}.running_var"] * factor**2

    def read_directly(convolution: str, factor: _Array) -> None:
        name = f"{convolution}.weight"
        uneven[name] = uneven[name] / factor.reshape(1, -1, 1, 1)

    before = np.ones(CHANNELS[0], np.float32)
    for stage, (blocks, channels) in enumerate(zip(BLOCKS[depth], CHANNELS, strict=True), start=1):
        sums, *inner = np.exp(random.standard_normal((blocks + 1, channels))).astype(np.float32)
        for index, factor in enumerate(inner):
            block = f"layer{stage}.{index}"
            read(f"{block}.bn1", sums if index else before)
            if not index:
                read_directly(f"{block}.downsample.0", before)
                write(f"{block}.downsample.1", sums)
            write(f"{block}.bn2", factor)
            read_directly(f"{block}.conv2", factor)
            write(f"{block}.bn3", sums)
        before = sums
    read("bn2", before)
    return uneven


def _draw(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> _Array:
    """Draw one parameter; batch norms start as the identity."""
    layer, _, field = name.rpartition(".")
    if len(shape) > 1:
        # He et al. 2015 for PReLU: the variance that keeps the signal's size through conv and slope.
        fan_in = int(np.prod(shape[1:]))
        scale = np.sqrt(2 / ((1 + _PRELU_SLOPE**2) * fan_in))
        return np.asarray(random.standard_normal(shape) * scale, np.float32)
    if layer.endswith("prelu"):
        return np.full(shape, _PRELU_SLOPE, np.float32)
    return np.full(shape, field in ("weight", "running_var") and layer != "fc", np.float32)


def _calibration_batch(seed: int) -> _Array:
    """Normalised RGB crops, float32 [N, 3, 112, 112]: faces seen through textures, textures, noise.

    Drawn faces alone are more alike than photographs are, and smoother.
    """
    seed = (seed + _SEED_OFFSET) % 2**32
    textures = texture(_FACES + _TEXTURES, seed)
    share = np.random.RandomState(seed).uniform(0, _MOST_TEXTURE, (_FACES, 1, 1, 1))
    blend = face_like(_FACES, seed) * (1 - share) + textures[:_FACES] * share
    seen = np.asarray(np.rint(blend), np.uint8)
    return PYTORCH.apply(np.concatenate([seen, textures[_FACES:], noise(_NOISES, seed)]))


def _measure(depth: str, weights: dict[str, _Array], batch: _Array) -> tuple[dict[str, _Array], _Array]:
    """Run the network once with batch norms that normalise by the batch, as in training.

    Returns:
        Mean and variance that each batch norm before ``fc`` saw, by their name in the state dict, and
        the input of ``fc``, float32 [N, 25088].
    """
    tape = ir.tape.Tape()
    epsilon = tape.initializer(ir.tensor(np.float32(EPSILON), name="epsilon"))
    statistics: list[ir.Value] = []

    def measuring_norm(_: ir.tape.Tape, value: ir.Value, name: str) -> ir.Value:
        over: dict[str, int | list[int]] = {"axes": [0, 2, 3], "keepdims": 1}
        mean = tape.op("ReduceMean", [value], over)
        centred = tape.op("Sub", [value, mean])
        variance = tape.op("ReduceMean", [tape.op("Mul", [centred, centred])], over)
        mean.name, variance.name = f"{name}.running_mean", f"{name}.running_var"
        statistics.extend((mean, variance))
        return tape.op("Div", [centred, tape.op("Sqrt", [tape.op("Add", [variance, epsilon])])])

    image = ir.val("input", ir.DataType.FLOAT, (len(batch), 3, CROP_SIZE, CROP_SIZE))
    flat = flat_features(tape, image, depth, weights, measuring_norm)
    outputs = [*statistics, flat]
    for output in outputs:
        output.dtype = ir.DataType.FLOAT
    model = model_of(tape, image, outputs, name="calibration")

    calibration = session(model)
    # All crops at once, since each norm needs the statistics of all; in a thread, where Ctrl-C can end it.
    running = onnxruntime.RunOptions()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(calibration.run, None, {"input": batch}, running)
        try:
            *measured, features = run.result()
        except KeyboardInterrupt:
            running.terminate = True  # before the next operator
            raise
    names = [str(value.name) for value in statistics]
    return {name: value.reshape(-1) for name, value in zip(names, measured, strict=True)}, features


def _without_common_directions(weight: _Array, flat: _Array) -> _Array:
    """Make the last layer ignore what images of one kind share: light, contrast, texture, noise.

    Otherwise the faces of one photograph would all lie close together. The weight [512, 25088] becomes
    orthogonal to each channel's mean, and to the first principal components of the rest of ``flat``.
    """
    # In float64: directions of nearly equal weight are told apart the same way on every machine.
    seeing, features = (_without_channel_means(rows.astype(np.float64)) for rows in (weight, flat))
    centred = features - features.mean(axis=0)
    _, vectors = np.linalg.eigh(centred @ centred.T)  # [N, N]: as good as the far larger covariance
    common = vectors[:, -_COMMON_DIRECTIONS:].T @ centred
    common /= np.linalg.norm(common, axis=1, keepdims=True)
    return np.asarray(seeing - (seeing @ common.T) @ common, np.float32)


def _without_channel_means(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Take the mean of each channel's map out of rows [M, 25088]."""
    maps = rows.reshape(len(rows), CHANNELS[-1], -1)
    return np.asarray((maps - maps.mean(axis=2, keepdims=True)).reshape(rows.shape))
