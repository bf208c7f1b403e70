"""PRelu rewritten for ONNX Runtime: exact, where it helps, and nowhere else."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arcface_client.runtimes.onnxruntime import open_session
from arcface_client.runtimes.prelu import without_prelu

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="ONNX Runtime's blocked layout is of x86"
)

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
small (float[N, 3, 16, 16] image) => (float[N, C, 16, 16] out) {
    a = Conv <pads = [1, 1, 1, 1]> (image, first)
    b = PRelu (a, slope)
    c = Conv <pads = [1, 1, 1, 1]> (b, second)
    d = PRelu (c, slope)
    out = Add (d, b)
}"""


def write(
    path: Path, *, channels: int = 32, slope: tuple[int, ...] | None = None, text: str = NETWORK
) -> Path:
    """A residual block with random weights; the slopes are of both signs, and some are above 1."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    shapes = {
        "first": (channels, 3, 3, 3),
        "second": (channels, channels, 3, 3),
        "slope": slope or (channels, 1, 1),
    }
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_the_results_are_those_of_the_file(batch: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx")
    image = np.random.default_rng(1).standard_normal((batch, 3, 16, 16)).astype(np.float32)

    (expected,) = open_session(path, as_it_is=True).run(None, {"image": image})
    (found,) = open_session(path).run(None, {"image": image})

    rewritten = without_prelu(path)
    assert rewritten is not None
    assert "PRelu" not in {node.op_type for node in onnx.load_from_string(rewritten).graph.node}
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "network",
    [
        {"channels": 12},
        {"slope": (1,)},
        {
            "text": NETWORK.replace("(a, slope)", "(image, slope)").replace("(c, slope)", "(b, slope)"),
            "slope": (3, 1, 1),
        },
        {"text": NETWORK.replace("PRelu (a, slope)", "Relu (a)").replace("PRelu (c, slope)", "Relu (c)")},
    ],
    ids=["channels that fill no block", "one slope", "not behind a convolution", "no PRelu"],
)
def test_where_it_would_not_help_the_file_is_run_as_it_is(network: dict[str, Any], tmp_path: Path) -> None:
    assert without_prelu(write(tmp_path / "model.onnx", **network)) is None


@pytest.mark.parametrize("missing", ["x86", "onnx"])
def test_without_the_layout_or_the_package_the_file_is_run_as_it_is(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.onnx")
    if missing == "x86":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        assert without_prelu(path) is None
    else:
        monkeypatch.setitem(sys.modules, "onnx", None)
        monkeypatch.delitem(sys.modules, "arcface_client.runtimes.prelu")
    assert open_session(path).run(None, {"image": np.zeros((1, 3, 16, 16), np.float32)})[0].shape == (
        1,
        32,
        16,
        16,
    )
