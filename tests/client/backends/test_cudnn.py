"""cuDNN in this process, where it cannot be used; tests/gpu has the rest."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from arcface_client.contract import Crops
from arcface_client.models.manifest import ModelManifest
from arcface_client.models.plan_manifest import PlanParity, SiblingManifest

from .conftest import Make


def add_sibling(models: Path) -> None:
    """Add ``small_cudnn`` as the builder would on a machine with a GPU."""
    onnx = ModelManifest.read(models / "small_onnx-1.manifest.json")
    (models / "small_cudnn/1").mkdir(parents=True)
    shutil.copyfile(models / "small_onnx/1/model.onnx", models / "small_cudnn/1/model.onnx")
    manifest = SiblingManifest(
        model="small_cudnn",
        version=1,
        created=onnx.created,
        runtime="cudnn",
        runtime_version="9.19.0",
        device="NVIDIA H200",
        precision="fp16",
        onnx_sha256=onnx.model_file.sha256,
        model_file=onnx.model_file,
        parity=PlanParity(
            largest_drift_cosine=1e-6, max_drift_cosine=1e-3, crops=32, compared_with="source file"
        ),
        rebuild_command="arcface-builder compile --name small --runtime cudnn",
    )
    (models / "small_cudnn-1.manifest.json").write_text(manifest.to_json())


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("no sibling", r"no small_cudnn in .* Run `arcface-builder compile .* --runtime cudnn`"),
        ("not installed", r"needs the package cudnn: pip install 'arcface-triton\[cudnn\]'"),
    ],
)
def test_where_it_cannot_be_used_onnx_runtime_serves_and_the_reason_is_told(
    harm: str, reason: str, make: Make, models: Path, crops: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    if harm == "not installed":
        add_sibling(models)
        monkeypatch.delitem(sys.modules, "arcface_client.runtimes.cudnn.runtime", raising=False)
        monkeypatch.setitem(sys.modules, "cudnn", None)

    with make("cudnn", embedding_model_repository=models) as embedder:
        _, served = embedder.encode(crops, return_source=True)

    assert [source.backend for source in served.sources] == ["onnxruntime"]
    (refusal,) = served.refusals
    assert refusal.candidate == "small_cudnn on cuda:0"
    assert re.search(reason, refusal.reason)
