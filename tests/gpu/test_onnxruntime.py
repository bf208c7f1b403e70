"""ONNX Runtime on the GPU, in this process; needs ``onnxruntime-gpu`` and no TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from arcface_client import EmbeddingClient, get_embedding_backend
from arcface_client.models.golden import golden_crops
from arcface_client.runtimes.base import CPU, CUDA
from arcface_server import LocalTriton
from support.gpu_models import Model


@pytest.fixture(scope="module", autouse=True)
def cuda_provider() -> None:
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu in place of onnxruntime")


def test_the_gpu_gives_the_embeddings_of_the_cpu(small: Model) -> None:
    settings: dict[str, Any] = {
        "embedding_model": "small",
        "embedding_model_repository": small.repository.root,
    }
    crops = np.tile(golden_crops(), (5, 1, 1, 1))  # a full batch, and a part of one
    with (
        get_embedding_backend("onnxruntime", "cuda:0", **settings) as gpu,
        get_embedding_backend("onnxruntime", "cpu", **settings) as cpu,
    ):
        embeddings, served = gpu.encode(crops, return_source=True)
        np.testing.assert_allclose(embeddings, cpu.encode(crops), atol=1e-5)  # not TF32
        found, other = gpu.diagnostics(), cpu.diagnostics()

    assert served.refusals == ()
    assert [state.candidate for state in found.candidates if state.state == "serving"] == [
        f"small_onnx on {CUDA}"
    ]
    assert [state.candidate for state in other.candidates if state.state == "serving"] == [
        f"small_onnx on {CPU}"
    ]


def test_auto_chooses_the_gpu(small: Model) -> None:
    with get_embedding_backend(
        "onnxruntime", "auto", embedding_model="small", embedding_model_repository=small.repository.root
    ) as embedder:
        embedder.ensure_ready()
        states = {state.candidate: state.state for state in embedder.diagnostics().candidates}

    assert states[f"small_onnx on {CUDA}"] == "serving"


def test_triton_serves_the_onnx_model_on_the_gpu(small: Model, tmp_path: Path) -> None:
    crops = golden_crops()
    with (
        LocalTriton(small.repository.root, log_path=tmp_path / "log") as server,
        EmbeddingClient(server.grpc_url, "small_onnx") as client,
    ):
        embeddings = client.encode(crops)

    assert "small_onnx: ONNX Runtime computes on GPU 0" in (tmp_path / "log").read_text()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_a_missing_gpu_falls_back_to_the_cpu_and_the_refusal_names_it(small: Model) -> None:
    settings: dict[str, Any] = {
        "embedding_model": "small",
        "embedding_model_repository": small.repository.root,
    }
    with get_embedding_backend("onnxruntime", "cuda:99", **settings) as embedder:
        embeddings, served = embedder.encode(golden_crops(), return_source=True)

    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    (refusal,) = served.refusals
    assert refusal.candidate == f"small_onnx on {CUDA}"
