"""The batch norm in front of a padded convolution, folded into the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from arcface_builder.graph.batchnorm import fold_preactivations
from arcface_builder.graph.edit import session

CHANNELS = 4
Array = npt.NDArray[np.float32]


class Network:
    """A residual network of two blocks, the second of which has the batch norm to fold.

    Args:
        shortcut: Put a convolution of stride 2 and this kernel on the second block's shortcut, as where a
            stage begins.
        changes: Weights to replace, by their name.
        between: An operator between the first sum and the second block.
        returns_sum: Give the first sum back as well.
        first_channels: Channels of the first convolution, which the first sum spreads if it is one.
    """

    def __init__(
        self,
        *,
        shortcut: int | None = None,
        changes: Mapping[str, Array] | None = None,
        between: str | None = None,
        returns_sum: bool = False,
        first_channels: int = CHANNELS,
    ) -> None:
        self._random = np.random.RandomState(0)
        self._changes = changes or {}
        self._tape = tape = ir.tape.Tape()
        x = ir.val("x", ir.DataType.FLOAT, ("N", CHANNELS, 12, 10))
        stride = 2 if shortcut else 1
        first = tape.op("Add", [self._conv(x, "first", channels=first_channels), x], name="first_sum")
        seen = tape.op(between, [first]) if between else first
        inner = self._conv(self._norm(seen, "norm"), "inner")
        slope = self._weight("slope", CHANNELS, 1, 1)
        branch = self._conv(tape.op("PRelu", [inner, slope]), "outer", stride)
        side = self._conv(seen, "side", stride, shortcut) if shortcut else seen
        second = tape.op("Add", [side, branch], name="second_sum")
        third = tape.op("Add", [self._conv(second, "last"), second], name="third_sum")
        outputs = [third, first] if returns_sum else [third]
        for number, output in enumerate(outputs):
            output.name, output.dtype = f"y{number}", ir.DataType.FLOAT
        graph = ir.Graph(
            [x],
            outputs,
            nodes=tape.nodes,
            initializers=tape.initializers,
            opset_imports={"": 17},
            name="network",
        )
        self.model = ir.Model(graph, ir_version=8)

    def _weight(self, name: str, *shape: int) -> ir.Value:
        drawn = self._random.uniform(-1, 1, shape).astype(np.float32)
        return self._tape.initializer(ir.tensor(self._changes.get(name, drawn), name=name))

    def _conv(
        self, value: ir.Value, name: str, stride: int = 1, kernel: int = 3, channels: int = CHANNELS
    ) -> ir.Value:
        weight = self._weight(f"{name}.weight", channels, CHANNELS, kernel, kernel)
        window = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2}
        return self._tape.op("Conv", [value, weight], window, name=name)

    def _norm(self, value: ir.Value, name: str) -> ir.Value:
        fields = [self._weight(f"{name}.{field}", CHANNELS) for field in ("gamma", "beta", "mean")]
        variance = self._tape.initializer(
            ir.tensor(self._random.uniform(0.5, 2, CHANNELS).astype(np.float32), name=f"{name}.variance")
        )
        return self._tape.op("BatchNormalization", [value, *fields, variance], name=name)

    def run(self) -> list[Any]:
        """Its outputs for random images."""
        x = np.random.RandomState(1).standard_normal((2, CHANNELS, 12, 10)).astype(np.float32)
        return session(self.model).run(None, {"x": x})  # type: ignore[no-any-return]


def check_folded(network: Network, folded: int) -> None:
    """Fold, and find as many batch norms gone and the same outputs."""
    expected = network.run()

    fold_preactivations(network.model)

    left = [node for node in network.model.graph if node.op_type == "BatchNormalization"]
    assert len(left) == 1 - folded
    for got, want in zip(network.run(), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shortcut", [None, 1])
def test_a_block_loses_only_its_batch_norm(shortcut: int | None) -> None:
    network = Network(shortcut=shortcut)
    before = len(network.model.graph)

    check_folded(network, 1)

    assert len(network.model.graph) == before - 1


def vector(*values: float) -> Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("gamma", "beta", "folded"),
    [
        pytest.param(vector(1, 1e-30, 1, 1), vector(0, 1e-30, 0, 0), 1, id="channel switched off"),
        pytest.param(vector(1, 1, 1, 1), vector(0, 7.9, 0, 0), 1, id="large shift"),
        pytest.param(vector(1, 1, 1, 1), vector(0, 8.1, 0, 0), 0, id="shift that 16 bits would drown in"),
        pytest.param(vector(1, 0, 1, 1), vector(1, 1, 1, 1), 0, id="constant channel"),
        pytest.param(vector(0, 0, 0, 0), vector(0, 0, 0, 0), 1, id="all zeros"),
    ],
)
def test_scale_and_shift_decide_whether_a_batch_norm_is_folded(
    gamma: Array, beta: Array, folded: int
) -> None:
    check_folded(Network(changes={"norm.gamma": gamma, "norm.beta": beta}), folded)


@pytest.mark.parametrize(
    "options",
    [{"between": "Relu"}, {"returns_sum": True}, {"shortcut": 3}, {"first_channels": 1}],
    ids=["after an activation", "sum is an output", "padded shortcut", "sum broadcasts one channel"],
)
def test_a_batch_norm_stays_where_the_stream_cannot_take_its_offset(options: dict[str, Any]) -> None:
    check_folded(Network(**options), 0)
