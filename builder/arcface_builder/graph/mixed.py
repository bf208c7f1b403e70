"""Mixed precision: int8 in as many convolutions as the tolerance allows.

The mean drift that one convolution in int8 causes hardly depends on the others, and the means add up. So one
pass over the convolutions, each in int8 by itself, gives the order: the least drift for a multiply-add first.
How many of them fit is then found by bisection, on all crops, of which half did not calibrate, with the
runtime that will serve if it loads within seconds: its own rounding is part of the drift.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import numpy as np

from arcface_client.contract import Crops, Embeddings, Progress, no_progress
from arcface_client.models.golden import drifts, golden_crops, largest_drift
from arcface_client.runtimes.base import Embed, in_batches

from ..errors import OptionError, PrecisionError
from .edit import embedder
from .quantise import Calibrated, QuantisedGraph, calibrate, quantise, quantised, to_graph

_MARGIN: Final = 0.7
"""Share of the allowed drift that is used, since other people's crops drift a little more."""

_FEW: Final = 24  # crops that show one convolution's mean drift
_BATCH: Final = 8
_LEAST_CALIBRATION: Final = 32  # crops
_MANY: Final = 100
_ONE_PERSON: Final = 0.5  # mean similarity of crops; that of different people is near 0

_log = logging.getLogger(__name__)

Judge = Callable[[bytes], AbstractContextManager[Embed]]
"""Opens a graph's file in a runtime."""


def on_cpu(graph: bytes) -> AbstractContextManager[Embed]:
    """Open a graph in ONNX Runtime on the CPU."""
    return nullcontext(embedder(graph))


def calibration_halves(real: Crops | None) -> tuple[Crops, Crops]:
    """Split the crops of a folder: the first half calibrates int8, the second half judges it.

    Crops come in the order of their files' names. So people who have folders of their own are in one half.

    Args:
        real: uint8 [N, 112, 112, 3].

    Raises:
        OptionError: There are none, or too few.
    """
    count = 0 if real is None else len(real)
    if real is None or count < _LEAST_CALIBRATION:
        raise OptionError(
            f"int8 needs real face crops to find the ranges of its tensors, and there are {count or 'none'}; "
            f"give a folder of a few hundred with --calibration-dir (at least {_LEAST_CALIBRATION}; drawn "
            "faces give worse ranges)."
        )
    return real[: count // 2], real[count // 2 :]


def quantised_graph(
    serving_graph: bytes,
    precision: str,
    crops: Crops | None,
    *,
    max_drift_cosine: float,
    least_channels: int = 0,
    judge: Judge = on_cpu,
    report: Progress = no_progress,
) -> QuantisedGraph:
    """Write a serving graph in int8, or in mixed precision, and log what stays wide.

    Args:
        serving_graph: An ONNX file with the contract's tensors, in float32.
        precision: "int8" or "mixed".
        crops: Real ones; see ``calibration_halves``.
        max_drift_cosine: What mixed precision keeps within.
        least_channels: See ``calibrate``.
        judge: The runtime that must keep within it.
        report: Called with the share that is done.

    Raises:
        OptionError: There are too few crops.
        PrecisionError: The network has no convolutions for int8, or none within the tolerance.
    """
    calibration, held_out = calibration_halves(crops)
    _warn_of(calibration, serving_graph)
    if precision == "mixed":
        network = calibrate(serving_graph, calibration, report, least_channels=least_channels)
        graph = _quantised_within(network, calibration, held_out, max_drift_cosine, judge, report)
    else:
        graph = quantise(serving_graph, calibration, report, least_channels=least_channels)
    _log.info("%s", graph)
    return graph


def _quantised_within(
    network: Calibrated,
    crops: Crops,
    held_out: Crops,
    max_drift_cosine: float,
    judge: Judge,
    report: Progress,
) -> QuantisedGraph:
    """Write a serving graph with as many convolutions in int8 as a tolerance allows.

    The largest drift on the crops that calibrated it, and on others, must keep within 70 % of the tolerance.

    Raises:
        PrecisionError: Not one convolution can be in int8.
    """
    few = _evenly(crops)
    exact, costs = _embed(network, (), few), {}
    layers = [layer for layer in network.layers if layer.name in network.usual]
    for done, layer in enumerate(layers):
        report("Measuring the drift of each convolution", done / len(layers))
        drift = drifts(exact, _embed(network, (layer.name,), few)).mean()
        costs[layer.name] = drift / layer.multiply_adds
    order = sorted(costs, key=lambda name: costs[name])

    # All crops: the largest drift of few does not say enough. The client's golden check sees the golden ones.
    judging = np.concatenate([crops, held_out, golden_crops()])
    exact, fits, too_many = _embed(network, (), judging), 0, len(order) + 1
    steps, step = len(order).bit_length(), 0
    middle = len(order)
    while too_many - fits > 1:
        report("Adding convolutions", step / (steps + 1))
        step += 1
        with judge(to_graph(network, order[:middle], "mixed").content) as embed:
            drift = largest_drift(exact, in_batches(embed, judging, _BATCH))
        if drift <= _MARGIN * max_drift_cosine:
            fits = middle
        else:
            too_many = middle
        middle = (fits + too_many) // 2
    if not fits:
        raise PrecisionError(
            f"No convolution can be in int8 within {_MARGIN:.0%} of a drift of {max_drift_cosine:g} "
            "(validation.max_drift_cosine); use another precision, or raise it and, for clients, "
            "embedding.max_drift_cosine."
        )
    return to_graph(network, order[:fits], "mixed")


def _warn_of(crops: Crops, serving_graph: bytes) -> None:
    """Warn of crops that give ranges for less than what the model will see."""
    count, grey = len(crops), int((np.ptp(crops, axis=-1).max(axis=(1, 2)) == 0).sum())
    if count < _MANY:
        _log.warning("Only %d crops calibrate int8, half of those given; a few hundred are better", count)
    if 2 * grey > count:
        _log.warning(
            "%d of %d calibration crops are grey; give crops as the model will see them", grey, count
        )
    embed = embedder(serving_graph)

    def similarity(batch: Crops) -> float:
        embeddings = in_batches(embed, batch, 1)
        return float((embeddings @ embeddings.T)[np.triu_indices(len(batch), 1)].mean())

    alike = similarity(_evenly(crops))
    if alike > max(_ONE_PERSON, similarity(golden_crops())):
        _log.warning(
            "The calibration crops look like one person (mean similarity %.2f); give those of many", alike
        )


def _evenly(crops: Crops) -> Crops:
    few = np.linspace(0, len(crops) - 1, min(_FEW, len(crops))).astype(int)
    return np.asarray(crops[few])


def _embed(network: Calibrated, names: Collection[str], crops: Crops) -> Embeddings:
    return in_batches(embedder(quantised(network, names)), crops, _BATCH)
