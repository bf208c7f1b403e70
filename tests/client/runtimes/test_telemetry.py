"""ONNX Runtime's telemetry stays off in commands, pipelines and servers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from arcface_server.installation import find_installation
from arcface_server.launch import server_environment
from support.exports import small_arcface

INSPECT = "import sys; from arcface_builder.__main__ import main; sys.exit(main())"
EMBED = """
from arcface_client import get_embedding_backend
embedder = get_embedding_backend("onnxruntime", embedding_model_repository="nowhere")
import onnxruntime, sys
onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("code", [INSPECT, EMBED], ids=["command", "pipeline"])
def test_onnx_runtime_records_nothing(code: str, tmp_path: Path) -> None:
    onnx.save_model(small_arcface(), tmp_path / "model.onnx")
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR")}
    for place in places.values():
        place.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}

    subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "model.onnx")],
        env=environment | {name: str(place) for name, place in places.items()},
        stdout=subprocess.DEVNULL,
        check=True,
    )

    assert [path for place in places.values() for path in place.rglob("*")] == []


def test_the_servers_backends_record_nothing_unless_the_user_asks_for_it() -> None:
    there = find_installation()

    assert server_environment(there, {})["ORT_DISABLE_TELEMETRY"] == "1"
    assert server_environment(there, {"ORT_DISABLE_TELEMETRY": "0"})["ORT_DISABLE_TELEMETRY"] == "0"
