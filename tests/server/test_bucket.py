"""Triton reads the model repository from a bucket itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcface_client import EmbeddingClient
from arcface_client.contract import CROP_SHAPE
from arcface_server import LocalTriton
from support.s3_server import S3Server

pytestmark = pytest.mark.faults


def test_a_release_is_served_from_its_prefix_in_a_bucket(
    small_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    crops = np.random.default_rng(0).integers(0, 256, (3, *CROP_SHAPE), np.uint8)
    with LocalTriton(small_repository) as here, EmbeddingClient(here.grpc_url, "tiny_onnx") as client:
        expected = client.encode(crops)
    with S3Server() as s3:
        s3.client.create_bucket(Bucket="models")
        for file in (path for path in small_repository.rglob("*") if path.is_file()):
            key = f"arcface/1/{file.relative_to(small_repository)}"
            s3.client.upload_file(str(file), "models", key)
        place = f"s3://http://127.0.0.1:{s3.port}/models/arcface/1"
        with LocalTriton(place) as server, EmbeddingClient(server.grpc_url, "tiny_onnx") as client:
            np.testing.assert_array_equal(client.encode(crops), expected)
