"""TensorRT in this process, through the pipeline's call."""

from __future__ import annotations

from typing import Any

import numpy as np

from arcface_builder.repository.plans import AddedPlan
from arcface_client import get_embedding_backend
from arcface_client.models.golden import golden_crops
from support.gpu_models import Model


def test_the_plan_gives_the_embeddings_of_its_onnx_sibling(small: Model, small_plan: AddedPlan) -> None:
    settings: dict[str, Any] = {
        "embedding_model": "small",
        "embedding_model_repository": small.repository.root,
        "allow_cpu_fallback": False,
    }
    with (
        get_embedding_backend("tensorrt", "cuda:0", **settings) as plan,
        get_embedding_backend("onnxruntime", **settings) as sibling,
    ):
        embeddings, served = plan.encode(np.tile(golden_crops(), (3, 1, 1, 1)), return_source=True)
        diagnostics = plan.diagnostics()
        np.testing.assert_allclose(embeddings[:8], sibling.encode(golden_crops()), atol=1e-3)

    assert [source.backend for source in served.sources] == ["tensorrt"]
    assert diagnostics.engine_path == str(small_plan.path)
    assert (diagnostics.precision, diagnostics.batch_size) == ("fp32", 8)
    assert diagnostics.sm == small_plan.manifest.identity.sm
    assert diagnostics.vram_mb is not None
    assert 1 < diagnostics.vram_mb < 4096
    assert diagnostics.validation.regression_test == "passed"


def test_a_missing_gpu_falls_back_to_the_onnx_model(small: Model, small_plan: AddedPlan) -> None:
    with get_embedding_backend(
        "tensorrt", "cuda:99", embedding_model="small", embedding_model_repository=small.repository.root
    ) as embedder:
        _, served = embedder.encode(golden_crops(), return_source=True)

    assert [source.backend for source in served.sources] == ["onnxruntime"]
    assert served.refusals[0].reason.startswith("There is no GPU 99: CUDA sees ")
