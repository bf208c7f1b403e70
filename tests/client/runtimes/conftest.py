from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from support.tiny import tiny_serving_graph


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A serving graph's file."""
    onnx.save(tiny_serving_graph(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"
