"""The reference through InsightFace's own code, on files of every kind that it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from insightface.model_zoo.arcface_onnx import ArcFaceONNX

from arcface_client.errors import DeploymentError
from arcface_client.evaluation.controls import run_controls
from arcface_client.evaluation.reference import Reference
from arcface_client.evaluation.samples import generated_samples
from support.exports import Export, as_is, constant_reshape, mxnet, small_arcface
from support.tiny import tiny_serving_graph

CROPS = generated_samples(10).crops


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto], str]:
    def save(model: onnx.ModelProto) -> str:
        onnx.save(model, tmp_path / "source.onnx")
        return str(tmp_path / "source.onnx")

    return save


@pytest.mark.parametrize("export", [as_is, constant_reshape, mxnet])
def test_it_is_insightfaces_own_features_of_length_one(
    export: Export, save: Callable[[onnx.ModelProto], str]
) -> None:
    path = save(export(small_arcface()))
    insightface = ArcFaceONNX(path)
    features = np.concatenate([insightface.get_feat(crop) for crop in CROPS])
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    with Reference(path) as reference:
        assert reference.name == "InsightFace source.onnx"
        np.testing.assert_allclose(reference.embed(CROPS), expected, atol=1e-6)
        assert reference.normalises == (export is not mxnet)


def test_faults_of_normalisation_are_made_exactly(save: Callable[[onnx.ModelProto], str]) -> None:
    with Reference(save(small_arcface())) as reference:
        right = reference.embed(CROPS)
        raw = reference.embed_with(CROPS, mean=0.0, std=1.0)
        controls = run_controls(reference, [], CROPS, batch_size=4, max_drift_cosine=0.001)
        np.testing.assert_array_equal(reference.embed(CROPS), right)  # its own normalisation is back
    assert (right * raw).sum(axis=1).max() < 0.99
    by_fault = {control.fault: control for control in controls}
    assert by_fault["not normalised"].seen
    assert by_fault["not normalised"].required
    divided = by_fault["divided by 128, not 127.5"]
    assert 0 < divided.drift_max < 0.001
    assert not divided.required


def test_what_insightface_cannot_use_is_one_line(save: Callable[[onnx.ModelProto], str]) -> None:
    with pytest.raises(DeploymentError, match="no recognition model of InsightFace's"):
        Reference(save(tiny_serving_graph()))
    with pytest.raises(DeploymentError, match=r"There is no file missing\.onnx"):
        Reference("missing.onnx")
