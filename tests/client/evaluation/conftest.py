"""A Triton with models that are alike, nearly alike, and not alike at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arcface_server import LocalTriton
from support.tiny import write_tiny_repository

SLIGHTLY = 0.065
"""Noise on the weights, as a share of them, that makes drifts of up to about 0.003."""


def disturb(path: Path, share: float) -> None:
    """Add noise to a tiny model's weights."""
    model = onnx.load(path)
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "projection")
    values = numpy_helper.to_array(weights)
    noise = np.random.default_rng(99).standard_normal(values.shape).astype(np.float32) * values.std()
    weights.CopyFrom(numpy_helper.from_array(values + np.float32(share) * noise, weights.name))
    onnx.save(model, path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: face_onnx and face_trt equal, slight_trt nearly so, another_onnx not at all."""
    path = tmp_path_factory.mktemp("models")
    for name in ("face_onnx", "face_trt", "slight_trt"):  # on a CPU, siblings are ONNX models too
        write_tiny_repository(path, name, max_batch_size=8)
    disturb(path / "slight_trt/1/model.onnx", SLIGHTLY)
    write_tiny_repository(path, "another_onnx", versions=(2,))
    return path


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[LocalTriton]:
    with LocalTriton(models) as triton:
        yield triton
