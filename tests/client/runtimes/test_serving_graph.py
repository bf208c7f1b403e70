"""What every runtime of a serving graph on the CPU does."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from arcface_client.errors import ContractError, DeploymentError
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_client.runtimes.openvino import OpenVino

Kind = type[OnnxRuntime] | type[OpenVino]

pytestmark = pytest.mark.parametrize("kind", [OnnxRuntime, OpenVino])


def test_a_missing_or_broken_model_file_is_named(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="No model file at"):
        kind(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(DeploymentError, match=r"load .*broken\.onnx: (Unable to read the model|\[ONNX)"):
        kind(tmp_path / "broken.onnx")


def test_a_model_with_other_tensors_is_refused(kind: Kind, model: Path) -> None:
    changed = onnx.load(model)
    changed.graph.output[0].name = "fc1"
    changed.graph.node[-1].output[0] = "fc1"
    onnx.save(changed, model)
    with pytest.raises(ContractError, match=r"outputs fc1 FP32\[N, 512\]; expected .* embedding"):
        kind(model)
