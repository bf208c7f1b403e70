"""INT8: Q/DQ pairs around the convolutions of a serving graph, with ranges from calibration crops.

This is the graph, for whatever runs it::

    x ── QuantizeLinear ── DequantizeLinear ──┐
                      w ── DequantizeLinear ──┴── Conv (+ bias) ── PRelu, Add, ...

- The input x of a quantised convolution has one pair, ``{x}.int8`` and ``{x}.dequantised``, which all
  quantised convolutions that read x share. Its scale is one float32 number, its zero point int8 0. Nothing
  else reads the pair: PRelus, batch norms, residual sums and wide convolutions see x itself.
- The weights are an int8 initializer, ``{w}.int8``, from -127 to 127, with a float32 scale for each output
  channel (axis 0) and zero point 0. The bias stays float32.
- All else is the float32 serving graph, in opset 13 or newer; nodes keep their names. Channels were scaled
  (``equalise``), so weights and inner tensors differ from the ONNX model's; embeddings do not.

The first convolution, which sees the pixels through three channels, and depthwise ones stay wide: they hold
few of the multiply-adds, and most of the drift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from arcface_client.contract import INPUT_NAME, Crops, Progress, no_progress

from ..errors import PrecisionError
from .edit import constant, initializer, parse, session
from .equalise import equalise, fuse_prelus
from .opset import in_opset
from .serving import one_crop, takes_one_crop

PER_CHANNEL: Final = (13, 7)
"""The first opset, and the IR version of its time, in which Q/DQ have a scale for each channel."""

_REVISION: Final = b"3"
"""Raise it with every change that makes another graph of the same crops."""

_BATCH: Final = 8  # crops at a time, whose feature maps are in memory at once
_STEPS: Final = 127  # of int8 on either side of zero
_BINS: Final = 8192  # of the histogram of a tensor's absolute values
_PERCENTILE: Final = 99.999
_LEAST_RANGE: Final = 1e-6  # of a tensor that is all zeros
_LEAST_WEIGHT: Final = 1e-5  # below this, a channel is as good as zero, and its scale would be so in float16


@dataclass(frozen=True)
class Layer:
    """A convolution that can compute in int8.

    Attributes:
        name: The node's name.
        multiply_adds: For one crop.
        step: The scale of its input.
        wide: Why it had better not; empty if it had.
    """

    name: str
    multiply_adds: int
    step: float
    wide: str


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A network that is ready to be quantised.

    Attributes:
        model: The float32 graph, equalised.
        layers: Its convolutions that can be quantised, in the order of the graph.
        wide: Why the other ones with weights stay as they are, by name.
        sha256: SHA-256 of what the ranges were computed from.
    """

    model: ir.Model
    layers: tuple[Layer, ...]
    wide: Mapping[str, str]
    sha256: str

    @property
    def usual(self) -> tuple[str, ...]:
        """The convolutions that ``--precision int8`` quantises."""
        return tuple(layer.name for layer in self.layers if not layer.wide)

    def share(self, names: Collection[str]) -> float:
        """Share of the multiply-adds of all convolutions but the first in some of them."""
        total = sum(layer.multiply_adds for layer in self.layers)
        return sum(layer.multiply_adds for layer in self.layers if layer.name in names) / total


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedGraph:
    """A serving graph in int8, and what is known of it.

    Attributes:
        content: The ONNX file.
        precision: "int8" or "mixed".
        convolutions: Names of those in int8, in the order of the graph.
        wide: Why other layers with weights are not, by name.
        share: Share of the multiply-adds of all convolutions but the first that is in int8.
        calibration_sha256: SHA-256 of what the ranges were computed from; see ``calibration_sha256``.
    """

    content: bytes
    precision: str
    convolutions: tuple[str, ...]
    wide: Mapping[str, str]
    share: float
    calibration_sha256: str

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.wide.items():
            reasons.setdefault(reason, []).append(name)
        wide = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())
        return (
            f"In int8 are {len(self.convolutions)} convolutions, with {self.share:.0%} of the multiply-adds "
            f"behind the first. Wide are: {wide}."
        )


def quantise(
    serving_graph: bytes, crops: Crops, report: Progress = no_progress, *, least_channels: int = 0
) -> QuantisedGraph:
    """Write a serving graph in int8; arguments and errors are those of ``calibrate``."""
    network = calibrate(serving_graph, crops, report, least_channels=least_channels)
    return to_graph(network, network.usual, "int8")


def calibration_sha256(serving_graph: bytes, crops: Crops) -> str:
    """SHA-256 of what a graph's ranges are computed from; their own last bits differ between processors."""
    return hashlib.sha256(b"".join([_REVISION, serving_graph, crops.tobytes()])).hexdigest()


def to_graph(network: Calibrated, names: Collection[str], precision: str) -> QuantisedGraph:
    """Write a network with some convolutions in int8, by their names."""
    proto = ir.to_proto(quantised(network, names))
    chosen = tuple(layer.name for layer in network.layers if layer.name in names)
    left = {
        layer.name: layer.wide or "it would drift too much"
        for layer in network.layers
        if layer.name not in names
    }
    return QuantisedGraph(
        content=bytes(proto.SerializeToString(deterministic=True)),
        precision=precision,
        convolutions=chosen,
        wide={**network.wide, **left},
        share=network.share(names),
        calibration_sha256=network.sha256,
    )


def calibrate(
    serving_graph: bytes, crops: Crops, report: Progress = no_progress, *, least_channels: int = 0
) -> Calibrated:
    """Prepare a serving graph for int8: even out its channels, and find the ranges of its tensors.

    Args:
        serving_graph: An ONNX file with the contract's tensors, in float32.
        crops: uint8 [N, 112, 112, 3], BGR.
        report: Called with the share that is done.
        least_channels: What a convolution reads for int8 to pay; others stay wide.

    Raises:
        PrecisionError: The network has no convolution for int8.
    """
    model = parse(serving_graph)
    batch = 1 if takes_one_crop(model) else _BATCH
    model = in_opset(one_crop(model), *PER_CHANNEL)
    passes.NameFixPass()(model)  # exporters may leave nodes without a name
    fuse_prelus(model)
    convolutions, wide = _convolutions(model)
    reasons = {node: _wide(node, least_channels) for node in convolutions}
    if not convolutions or (least_channels and all(reasons.values())):
        wanted = f"convolutions of {least_channels} channels or more" if least_channels else "convolutions"
        raise PrecisionError(
            f"int8 is for {wanted} after the first, and this network has none; use another precision."
        )
    inputs = list(dict.fromkeys(_input(node) for node in convolutions))
    every = list(dict.fromkeys(_input(node) for node in model.graph if node.op_type == "Conv"))

    report("Evening out the channels", 0)
    peaks: dict[ir.Value, npt.NDArray[np.float32]] = {}
    for value, array in _observed(model, every, crops, batch, report, "Evening out the channels"):
        peak = np.abs(array).max(axis=(0, *range(2, array.ndim)))
        peaks[value] = np.maximum(peaks.get(value, peak), peak)
    factors = equalise(model, peaks)
    largest = {value: float((peaks[value] * factors.get(value, 1)).max()) for value in inputs}

    counts = {value: np.zeros(_BINS + 1, np.int64) for value in inputs}
    for value, array in _observed(model, inputs, crops, batch, report, "Finding the ranges"):
        bins = np.abs(array) * np.float32(_BINS / max(largest[value], _LEAST_RANGE))
        counts[value] += np.bincount(bins.astype(np.int32).reshape(-1).clip(max=_BINS), minlength=_BINS + 1)
    steps = {value: _range(counts[value], largest[value]) / _STEPS for value in inputs}

    outputs = [node.outputs[0] for node in convolutions]
    maps = {value: array.shape for value, array in _observed(model, outputs, crops[:1], 1)}
    layers = []
    for node in convolutions:
        weight = _weight(node)
        layers.append(
            Layer(
                name=str(node.name),
                multiply_adds=int(weight.size * np.prod(maps[node.outputs[0]][2:])),
                step=steps[_input(node)],
                wide=reasons[node],
            )
        )
    return Calibrated(model, tuple(layers), wide, calibration_sha256(serving_graph, crops))


def quantised(network: Calibrated, names: Collection[str]) -> ir.Model:
    """Put pairs around some of the convolutions of a network, by their names."""
    model = network.model.clone()
    graph, steps = model.graph, {layer.name: layer.step for layer in network.layers if layer.name in names}
    zero = initializer(graph, "int8_zero", np.array(0, np.int8))
    pairs: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node.name in steps]:
        value, weight = _input(node), _weight(node)
        tape = ir.tape.Tape()
        if value not in pairs:
            step = initializer(graph, f"{value.name}.scale", np.array(steps[str(node.name)], np.float32))
            narrow = tape.op("QuantizeLinear", [value, step, zero], name=f"{value.name}.quantise")
            pairs[value] = tape.op("DequantizeLinear", [narrow, step, zero], name=f"{value.name}.dequantise")
            narrow.name, pairs[value].name = f"{value.name}.int8", f"{value.name}.dequantised"
        scales = weight_scales(weight)
        levels = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
        name = f"{node.name}.weight"
        held = tape.op(
            "DequantizeLinear",
            [
                initializer(graph, f"{name}.int8", np.clip(levels, -_STEPS, _STEPS).astype(np.int8)),
                initializer(graph, f"{name}.scale", scales),
                initializer(graph, f"{name}.zero", np.zeros(len(scales), np.int8)),
            ],
            {"axis": 0},
            name=f"{name}.dequantise",
        )
        held.name = f"{name}.dequantised"
        graph.insert_before(node, tape.nodes)
        node.replace_input_with(0, pairs[value])
        node.replace_input_with(1, held)
    passes.RemoveUnusedNodesPass()(model)
    return model


def weight_scales(weight: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The scale of each output channel of a weight [O, ...], float32 [O]."""
    peaks = np.abs(weight).max(axis=tuple(range(1, weight.ndim)))
    return np.asarray(np.maximum(peaks, _LEAST_WEIGHT) / _STEPS, np.float32)


def _range(counts: npt.NDArray[np.int64], largest: float) -> float:
    """The largest value that int8 shall hold, from a histogram of absolute values up to the largest."""
    held = np.searchsorted(np.cumsum(counts), _PERCENTILE / 100 * counts.sum()) + 1
    return max(float(held) / _BINS * largest, _LEAST_RANGE)


def _convolutions(model: ir.Model) -> tuple[list[ir.Node], dict[str, str]]:
    """The convolutions that can be quantised, and why others stay wide."""
    good: list[ir.Node] = []
    wide: dict[str, str] = {}
    for node in model.graph:
        if node.op_type != "Conv" or node.domain:
            if node.op_type in ("Gemm", "MatMul", "ConvTranspose") and constant(node.inputs[1]) is not None:
                wide[str(node.name)] = f"{node.op_type} is not quantised"
            continue
        weight = constant(node.inputs[1])
        if weight is None or weight.ndim != 4 or weight.dtype != np.float32:
            wide[str(node.name)] = "its weights are computed, or not float32 [O, I, H, W]"
        elif not good and not wide:
            wide[str(node.name)] = "the first convolution"
        else:
            good.append(node)
    return good, wide


def _observed(
    model: ir.Model,
    values: Sequence[ir.Value],
    crops: Crops,
    batch: int,
    report: Progress = no_progress,
    stage: str = "",
) -> Iterator[tuple[ir.Value, npt.NDArray[np.float32]]]:
    """Run a graph over crops, and give some of its values, batch by batch."""
    names = [str(value.name) for value in values]
    runner = session(
        ir.Model(ir.convenience.extract(model.graph, [INPUT_NAME], names), ir_version=model.ir_version)
    )
    for start in range(0, len(crops), batch):
        report(stage, start / len(crops))
        yield from zip(values, runner.run(None, {INPUT_NAME: crops[start : start + batch]}), strict=True)


def _wide(convolution: ir.Node, least_channels: int) -> str:
    """Why a convolution had better stay wide; empty if it had not."""
    if convolution.attributes.get_int("group", 1) > 1:
        return "depthwise"
    few = _weight(convolution).shape[1] < least_channels
    return f"int8 is not faster for fewer than {least_channels} channels" if few else ""


def _input(convolution: ir.Node) -> ir.Value:
    value = convolution.inputs[0]
    if value is None:
        raise ValueError(f"{convolution.name} has no input.")
    return value


def _weight(convolution: ir.Node) -> npt.NDArray[Any]:
    weight = constant(convolution.inputs[1])
    if weight is None:
        raise ValueError(f"{convolution.name} has no weights.")
    return weight
