"""What is kept of a refused plan, and which layer is named."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arcface_builder.check.refusal import keep_refusal
from arcface_builder.graph.precision import typed_graph
from photograph import face_crops


def kept(folder: Path, converted: bytes, serving_graph: bytes) -> str:
    return keep_refusal(
        folder,
        converted=converted,
        exact=typed_graph(serving_graph, "fp32"),
        settings={"precision": "fp16"},
        crops=face_crops(),
        max_drift_cosine=0.001,
    )


def with_weights_times(graph: bytes, layer: str, factor: float) -> bytes:
    """A graph of which one layer computes wrongly."""
    model = onnx.load_model_from_string(graph)
    (node,) = (node for node in model.graph.node if node.name == layer)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array * array.dtype.type(factor), weight.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("layer", "factor"), [("conv2", -1.0), ("conv4", np.nan), ("fc", -1.0)])
def test_the_first_layer_that_diverges_is_named_and_everything_is_kept(
    layer: str, factor: float, small_graph: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    converted = with_weights_times(typed_graph(small_graph, "fp16"), layer, factor)

    message = kept(tmp_path / "refused/small", converted, small_graph)

    assert re.fullmatch(
        rf".* are in {tmp_path}/refused/small\. The first layer that diverges in the converted graph is "
        rf"{layer} \(drift (nan|\d\S*)\)\.",
        message,
    )
    assert (tmp_path / "refused/small/graph.onnx").read_bytes() == converted
    assert json.loads((tmp_path / "refused/small/settings.json").read_text()) == {"precision": "fp16"}
    assert capsys.readouterr().out == ""  # which may be JSON for a program
    assert np.array_equal(np.load(tmp_path / "refused/small/crops.npy"), face_crops())


def test_a_sound_graph_leaves_tensorrts_build(small_graph: bytes, tmp_path: Path) -> None:
    message = kept(tmp_path, typed_graph(small_graph, "fp16"), small_graph)

    assert "within the tolerance in ONNX Runtime, so the cause is TensorRT's build" in message
    assert f"`polygraphy run {tmp_path}/graph.onnx --onnxrt --trt --strongly-typed" in message


def test_a_graph_that_onnx_runtime_cannot_run_is_said_to_be_one(small_graph: bytes, tmp_path: Path) -> None:
    message = kept(tmp_path, typed_graph(small_graph, "bf16"), small_graph)

    assert "ONNX Runtime cannot run the converted graph" in message


def test_without_polygraphy_the_command_is_printed(
    small_graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.setitem(sys.modules, "polygraphy.logger", None)

    message = kept(tmp_path, typed_graph(small_graph, "fp16"), small_graph)

    assert "pip install 'arcface-triton[polygraphy]'; then run `polygraphy run /" in message
    assert "--input-shapes 'image:[2,112,112,3]' --fail-fast`" in message
