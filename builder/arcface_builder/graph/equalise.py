"""Two rewrites of a float32 graph that make it bear INT8 better.

``fuse_prelus`` puts PReLUs together that a converter took apart: between their parts there would be tensors
to quantise.

``equalise`` scales channels. A tensor has one range for all its channels, and the trained ones differ in size
by more than a hundred times, so that the small ones would have few steps left. Where convolutions write what
only convolutions, PRelus and residual sums read, the writers multiply each channel by a factor and the
readers divide by it. Factors of any size leave less drift than powers of two, which would not change a bit of
the float32 results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from .edit import constant, initializer, set_constant

Peaks = Mapping[ir.Value, npt.NDArray[np.float32]]
"""Largest absolute value of each channel, by the tensor, float32 [C]."""

_SCALES_THROUGH: Final = {"Add", "PRelu", "Relu", "LeakyRelu", "MaxPool", "AveragePool"}
"""What gives a scaled result for scaled inputs, whatever the positive factor of a channel."""

_PARTS: Final[Mapping[str, Callable[..., npt.NDArray[Any]]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Relu": lambda values: np.maximum(values, 0),
    "Abs": np.abs,
    "Neg": np.negative,
    "Max": np.maximum,
    "Min": np.minimum,
}
"""What converters make PReLUs of."""

_MOST_PARTS: Final = 8

_DENSE: Final = 0.5
"""Share of a difference between channels that is evened out in front of a dense convolution, whose weights of
one output channel have one range and take over what the activations lose. A depthwise one has a range for
each channel, and all is evened out."""

_MOST: Final = 256  # the largest factor
_LEAST_PEAK: Final = 1e-6  # of a channel, relative to the largest: others are dead


def fuse_prelus(model: ir.Model) -> int:
    """Put PReLUs together that were taken apart, for example into Relu(x) - slope * Relu(-x).

    What ``_PARTS`` make of one tensor x is linear on either side of zero, so its values at 1 and at -1 say
    what it computes: it is a PReLU if the first is 1.

    Returns:
        How many there were.
    """
    count = 0
    for node in [node for node in model.graph if node.op_type == "Add"]:
        for source in _sources(node):
            above, below = (_evaluate(node.outputs[0], source, np.float32(sign)) for sign in (1, -1))
            if above is None or below is None or not (above == 1).all():
                continue
            slope = initializer(model.graph, f"{node.name}.slope", np.asarray(-below, np.float32))
            tape = ir.tape.Tape()
            fused = tape.op("PRelu", [source, slope], name=f"{node.name}.prelu")
            model.graph.insert_before(node, tape.nodes)
            ir.convenience.replace_all_uses_with(node.outputs[0], fused, replace_graph_outputs=True)
            count += 1
            break
    passes.RemoveUnusedNodesPass()(model)
    return count


def _sources(total: ir.Node) -> Iterator[ir.Value]:
    """What a sum may be a PReLU of, the nearest first: tensors that several of its ``_PARTS`` read."""
    left, seen = [total], {total}
    while left and len(seen) < _MOST_PARTS:
        for value in left.pop(0).inputs:
            if value is None or constant(value) is not None:
                continue
            if len(value.uses()) > 1:
                yield value
            producer = value.producer()
            if producer is not None and producer.op_type in _PARTS and producer not in seen:
                seen.add(producer)
                left.append(producer)


def _evaluate(value: ir.Value, source: ir.Value, at: np.float32) -> npt.NDArray[Any] | None:
    """The value where the source is ``at`` everywhere; None if it does not scale with the source."""
    if value is source:
        return np.asarray(at)
    fixed, node = constant(value), value.producer()
    if fixed is not None:
        return fixed
    if node is None or node.op_type not in _PARTS:
        return None
    given = [one for one in node.inputs if one is not None]
    constants = [array for array in map(constant, given) if array is not None]
    # Products scale with one factor that does; elsewhere a constant would have to be zero.
    scales = len(constants) == 1 if node.op_type == "Mul" else not any(np.any(array) for array in constants)
    known = [array for one in given if (array := _evaluate(one, source, at)) is not None] if scales else []
    return _PARTS[node.op_type](*known) if len(known) == len(given) <= 2 else None


def equalise(model: ir.Model, peaks: Peaks) -> dict[ir.Value, npt.NDArray[np.float64]]:
    """Even out the channels of the tensors that convolutions read.

    Args:
        model: A float32 graph; its weights are replaced.
        peaks: Of the input of every convolution.

    Returns:
        The factors of each tensor that was scaled, float64 [C].
    """
    factors: dict[ir.Value, npt.NDArray[np.float64]] = {}
    scaled: dict[tuple[ir.Node, int], npt.NDArray[np.float64]] = {}

    def scale(node: ir.Node, index: int, factor: npt.NDArray[np.float64]) -> None:
        array = scaled.get((node, index))
        if array is None and (old := constant(node.inputs[index])) is not None:
            array = old.astype(np.float64)
        if array is not None:
            scaled[node, index] = array * factor

    for readers, writers in _groups(model):
        inputs = [reader.inputs[0] for reader in readers]
        peak = np.max([peaks[value] for value in inputs if value is not None], axis=0).astype(np.float64)
        alive = peak > _LEAST_PEAK * peak.max()
        if not alive.any():
            continue
        share = 1.0 if all(_groups_of(reader) > 1 for reader in readers) else _DENSE
        middle = np.exp(np.median(np.log(peak[alive])))
        factor = np.clip((middle / np.where(alive, peak, middle)) ** share, 1 / _MOST, _MOST)
        for writer in writers:
            scale(writer, 1, factor.reshape(-1, 1, 1, 1))
            if len(writer.inputs) > 2 and writer.inputs[2] is not None:
                scale(writer, 2, factor)
        for reader in readers:
            array, parts = constant(reader.inputs[1]), _groups_of(reader)
            if array is None:
                raise ValueError(f"{reader.name} has no weights.")
            each = np.repeat(factor.reshape(parts, -1), array.shape[0] // parts, axis=0)
            scale(reader, 1, 1 / each.reshape(*array.shape[:2], 1, 1))
        factors.update({value: factor for value in inputs if value is not None})
    for (node, index), array in scaled.items():
        set_constant(node, index, array.astype(np.float32), "even")
    passes.RemoveUnusedNodesPass()(model)
    return factors


def _groups_of(convolution: ir.Node) -> int:
    return int(convolution.attributes.get_int("group", 1))


def _groups(model: ir.Model) -> Iterator[tuple[list[ir.Node], list[ir.Node]]]:
    """The convolutions that read, and that write, the tensors of a group, whose channels scale together.

    Only groups that nothing keeps from being scaled are given.
    """
    above: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        while (up := above.setdefault(value, value)) is not value:
            value = up
        return value

    fixed = {*model.graph.inputs, *model.graph.outputs}
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    writers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        computed = [value for value in node.inputs if value is not None and constant(value) is None]
        if node.op_type == "Conv" and len(computed) == 1 and computed[0] is node.inputs[0]:
            readers[computed[0]].append(node)
            writers[node.outputs[0]].append(node)
        elif _scales_through(node, computed):
            for value in (*computed, *node.outputs):
                above[root(value)] = root(computed[0])
        else:
            fixed.update((*computed, *node.outputs))
    held = {root(value) for value in fixed}
    members: dict[ir.Value, list[ir.Value]] = defaultdict(list)
    for value in {*readers, *writers}:
        members[root(value)].append(value)
    for one, values in members.items():
        reading = [node for value in values for node in readers.get(value, ())]
        writing = [node for value in values for node in writers.get(value, ())]
        if one not in held and reading and writing:
            yield reading, writing


def _scales_through(node: ir.Node, computed: list[ir.Value]) -> bool:
    if node.op_type not in _SCALES_THROUGH or node.domain:
        return False
    return node.op_type == "PRelu" or len(computed) == len([one for one in node.inputs if one is not None])
