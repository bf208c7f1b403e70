"""Embed face crops with tritonclient's gRPC client alone, for a service that does not want arcface_client."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton


def embed(url: str, model: str, crops: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Embed uint8 [N, 112, 112, 3] BGR crops; N is at most the model's max_batch_size."""
    with triton.InferenceServerClient(url) as client:
        image = triton.InferInput("image", list(crops.shape), "UINT8")
        image.set_data_from_numpy(crops)
        result = client.infer(model, [image], client_timeout=5.0)
        embeddings: np.ndarray[Any, Any] = result.as_numpy("embedding")
    return embeddings  # float32 [N, D], rows of length one


if __name__ == "__main__":
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    print(embed("127.0.0.1:8001", "arcface_r100_onnx", faces).shape)
