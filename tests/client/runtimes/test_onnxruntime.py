from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_client.contract import INPUT_NAME, Crops
from arcface_client.errors import ContractError, DeploymentError
from arcface_client.runtimes.base import physical_cores
from arcface_client.runtimes.onnxruntime import OnnxRuntime, open_on
from support.tiny import tiny_serving_graph


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(tiny_serving_graph(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_embeddings_are_float32_rows_of_length_one(model: Path, crops: Crops) -> None:
    runtime = OnnxRuntime(model)
    embeddings = runtime.embed(crops)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    runtime.close()


def test_a_missing_or_broken_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="No model file at"):
        OnnxRuntime(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(DeploymentError, match=r"cannot load .*broken\.onnx"):
        OnnxRuntime(tmp_path / "broken.onnx")


def test_a_provider_that_cannot_run_the_model_is_a_deployment_error(model: Path) -> None:
    provider = "AzureExecutionProvider"  # in every build; it leaves all nodes to the CPU
    with pytest.raises(DeploymentError, match=f"on {provider}, but cannot run it: .*INVALID_ARGUMENT"):
        open_on(
            provider,
            model,
            options={},
            try_out=lambda session: session.run(None, {INPUT_NAME: np.zeros((1, 2), np.uint8)}),
        )


def test_a_model_with_other_tensors_is_refused(model: Path) -> None:
    changed = onnx.load(model)
    changed.graph.output[0].name = "fc1"
    changed.graph.node[-1].output[0] = "fc1"
    onnx.save(changed, model)
    with pytest.raises(ContractError, match=r"outputs fc1 FP32\[N, 512\]; expected .* embedding"):
        OnnxRuntime(model)


def test_only_cores_that_the_process_may_use_are_counted() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
