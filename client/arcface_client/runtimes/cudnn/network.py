"""The layers that this runtime has.

The layers are those of the IResNets: convolutions, each with its bias and either a PRelu or a residual sum
behind it, batch norms that the builder could not fold, and one Gemm before the L2 normalisation. The values
between them are named as in the file.

A convolution whose input and weights are quantised (Q/DQ pairs, symmetric, one step for the input and one for
each of its output's channels) multiplies int8 numbers. What is quantised is rounded once, by the layer that
computes it. Sums and batch norms read the value before the rounding, also where the graph has a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Value:
    """A feature map between two layers, stored in FP16 or int8 with the channels last.

    Attributes:
        name: Its name in the file.
        channels: Its channels.
        size: Its height, which is also its width.
        step: What its int8 numbers are multiples of; None for FP16.
    """

    name: str
    channels: int
    size: int
    step: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of one crop's."""
        return (2 if self.step is None else 1) * self.channels * self.size**2


@dataclass(frozen=True)
class Affine:
    """A batch norm: ``scale * source + shift``, float32 [C] each."""

    source: Value
    output: Value
    scale: Array
    shift: Array

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it reads."""
        return (self.source,)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What it writes."""
        return (self.output,)


@dataclass(frozen=True)
class Rounding:
    """From FP16 to int8: ``source / output.step``, rounded to the nearest number from -128 to 127."""

    source: Value
    output: Value

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it reads."""
        return (self.source,)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What it writes."""
        return (self.output,)


@dataclass(frozen=True)
class Convolution:
    """A convolution with square kernels, and what follows it.

    Attributes:
        source: What it reads.
        output: What it writes.
        weight: float32 [K, C, R, R]; whole numbers from -128 to 127 if ``scale`` is there.
        bias: float32 [K].
        stride: Its stride, in both directions.
        padding: Zeros at each border.
        slopes: Of the PRelu behind it, float32 [K]; None without one.
        residual: What is added to it; None without a sum.
        scale: What a sum of products of int8 numbers is worth, float32 [K]; None in FP16.
        rounded: The output in int8, which it writes besides; None without.
    """

    source: Value
    output: Value
    weight: Array
    bias: Array
    stride: int
    padding: int
    slopes: Array | None = None
    residual: Value | None = None
    scale: Array | None = None
    rounded: Value | None = None

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it reads."""
        return (self.source,) if self.residual is None else (self.source, self.residual)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What it writes."""
        return (self.output,) if self.rounded is None else (self.output, self.rounded)


Layer = Convolution | Affine | Rounding


@dataclass(frozen=True)
class Network:
    """A serving graph.

    Attributes:
        mean: Subtracted from the bytes, float32 [3], B, G, R.
        first: The convolution that reads them; it has a PRelu.
        shifted: The batch norm that reads the first convolution, which is computed with it; None without one.
        layers: The layers between, in the order to run them.
        gemm: float32 [pixels of the last feature map, D, C].
        bias: float32 [D].
    """

    mean: Array
    first: Convolution
    shifted: Affine | None
    layers: tuple[Layer, ...]
    gemm: Array
    bias: Array

    @property
    def features(self) -> Value:
        """What the Gemm reads."""
        return self.layers[-1].output

    @property
    def dim(self) -> int:
        """Numbers in an embedding."""
        return len(self.bias)

    @property
    def precision(self) -> str:
        """What its convolutions are in: "fp16"; "int8", except for the first; "mixed"."""
        is_int8 = {layer.scale is not None for layer in self.layers if isinstance(layer, Convolution)}
        return "mixed" if len(is_int8) > 1 else "int8" if is_int8 == {True} else "fp16"


def place(layers: Iterable[Layer], first: Sequence[Value]) -> dict[str, int]:
    """Give each feature map one of a few places in memory; those that are needed at once get different ones.

    Args:
        layers: In the order to run them.
        first: What is there before the first layer.

    Returns:
        The place of each value's name, from 0. The last layer's output is the one that stays.
    """
    layers = list(layers)
    last_reader = {value.name: number for number, layer in enumerate(layers) for value in layer.sources}
    places = {value.name: number for number, value in enumerate(first)}
    held = dict(places)
    for number, layer in enumerate(layers):
        for value in layer.outputs:
            place = next(place for place in range(len(held) + 1) if place not in held.values())
            places[value.name] = held[value.name] = place
        held = {name: at for name, at in held.items() if last_reader.get(name, len(layers)) > number}
    return places
