from __future__ import annotations

import pytest

from arcface_client.errors import ModelNotFoundError
from arcface_client.evaluation.opening import is_file, siblings_on
from arcface_client.triton.server_state import ModelStatus, ServerStatus

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


def test_siblings_are_the_ready_ones_newest_onnx_model_first() -> None:
    assert siblings_on(SERVER, "face") == ["face_onnx:2", "face_onnx:1", "face_trt:2", "face_trt:1"]


@pytest.mark.parametrize("name", ["other", "broken"])
def test_no_ready_sibling_is_an_error_that_names_what_is_ready(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"face_onnx:1, face_onnx:2, face_trt:1, .*Name the models"):
        siblings_on(SERVER, name)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("face_onnx", False),
        ("face_trt:3", False),
        ("model.onnx", True),
        ("./model", True),
        ("a/b.plan", True),
    ],
)
def test_a_file_is_told_from_a_model(spec: str, expected: bool) -> None:
    assert is_file(spec) is expected
