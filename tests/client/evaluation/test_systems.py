"""What can be compared: names of models and files, and InsightFace's own code as the reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from insightface.model_zoo.arcface_onnx import ArcFaceONNX

from arcface_client.errors import DeploymentError, ModelNotFoundError
from arcface_client.evaluation.samples import generated_samples
from arcface_client.evaluation.systems import open_reference, siblings_on
from arcface_client.triton.status import ModelStatus, ServerStatus
from support.exports import Export, as_is, constant_reshape, mxnet, small_arcface
from support.tiny import tiny_serving_graph

CROPS = generated_samples(10).crops

SERVER = ServerStatus(
    "host:8001",
    "2.51.0",
    ready=True,
    models=[
        ModelStatus("face_onnx", 1, "READY", ""),
        ModelStatus("face_onnx", 2, "READY", ""),
        ModelStatus("face_onnx", 3, "UNAVAILABLE", "no memory"),
        ModelStatus("face_trt", 1, "READY", ""),
        ModelStatus("face_trt", 2, "READY", ""),
        ModelStatus("face_trt_onnx", 1, "READY", ""),
        ModelStatus("broken_onnx", None, "", ""),
    ],
)


def test_siblings_are_the_ready_ones_with_the_newest_onnx_model_first() -> None:
    assert siblings_on(SERVER, "face") == ["face_onnx:2", "face_onnx:1", "face_trt:2", "face_trt:1"]


@pytest.mark.parametrize("name", ["other", "broken"])
def test_the_error_for_no_ready_sibling_names_what_is_ready(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"face_onnx:1, face_onnx:2, face_trt:1, .*Name the models"):
        siblings_on(SERVER, name)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto], str]:
    def save(model: onnx.ModelProto) -> str:
        onnx.save(model, tmp_path / "source.onnx")
        return str(tmp_path / "source.onnx")

    return save


@pytest.mark.parametrize("export", [as_is, constant_reshape, mxnet])
def test_the_reference_gives_insightfaces_own_features_scaled_to_length_one(
    export: Export, save: Callable[[onnx.ModelProto], str]
) -> None:
    path = save(export(small_arcface()))
    insightface = ArcFaceONNX(path)
    features = np.concatenate([insightface.get_feat(crop) for crop in CROPS])
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    with ExitStack() as stack:
        reference = open_reference(path, stack)
        assert reference.name == "InsightFace source.onnx"
        np.testing.assert_allclose(reference.embed(CROPS), expected, atol=1e-6)


def test_a_file_that_insightface_cannot_use_is_one_line(save: Callable[[onnx.ModelProto], str]) -> None:
    with ExitStack() as stack:
        with pytest.raises(DeploymentError, match=r"recognition model"):
            open_reference(save(tiny_serving_graph()), stack)
        with pytest.raises(DeploymentError, match=r"There is no file missing\.onnx"):
            open_reference("missing.onnx", stack)
