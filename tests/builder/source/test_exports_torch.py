"""Networks as torch exports them, in each of its ways, against torch itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.models.normalisation import PYTORCH
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from photograph import face_crops

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` installs it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed; `make test-torch` installs it")
nn = torch.nn

CHANNELS, TOKENS = 16, 64


class Excited(nn.Module):  # type: ignore[name-defined,misc]
    """Squeeze and excitation, a channel shuffle, explicit padding; the embedding and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, 8, 1), nn.BatchNorm2d(CHANNELS), nn.PReLU(CHANNELS)
        )
        self.gate = nn.Sequential(nn.Linear(CHANNELS, 4), nn.Mish(), nn.Linear(4, CHANNELS), nn.Sigmoid())
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.head = nn.Sequential(nn.Linear(CHANNELS * 14 * 14, 128), nn.BatchNorm1d(128))

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        batch, channels, height, width = x.size()
        x = x * self.gate(x.mean((2, 3))).view(batch, channels, 1, 1).expand_as(x)
        x = x.view(batch, 4, channels // 4, height, width).transpose(1, 2).contiguous()
        x = self.conv(nn.functional.pad(x.view(batch, channels, height, width), (1, 1, 1, 1)))
        x = self.head(x.flatten(1))
        length = x.norm(dim=1, keepdim=True)
        return x / length, length


class Transformer(nn.Module):  # type: ignore[name-defined,misc]
    """A vision transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 14, 14)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, TOKENS + 1, 32) / 5)
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 256)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        batch = x.shape[0]
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.position
        qkv = self.qkv(self.norm(x)).reshape(batch, TOKENS + 1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        x = x + nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(batch, -1, 32)
        return self.out(nn.functional.gelu(x[:, 0]))


def legacy(opset: int, *, free: bool) -> Callable[[Any, Path], None]:
    def export(network: Any, path: Path) -> None:
        names = {"input_names": ["x"], "output_names": ["out"]}
        axes = {"dynamic_axes": {"x": {0: "batch"}}} if free else {}
        image = torch.randn(1, 3, 112, 112)
        torch.onnx.export(network, (image,), path, opset_version=opset, dynamo=False, **names, **axes)

    return export


def dynamo(opset: int | None, *, free: bool) -> Callable[[Any, Path], None]:
    def export(network: Any, path: Path) -> None:
        shapes = {"dynamic_shapes": {"x": {0: torch.export.Dim("batch")}}} if free else {}
        image = torch.randn(2 if free else 1, 3, 112, 112)
        torch.onnx.export(network, (image,), path, opset_version=opset, dynamo=True, **shapes)

    return export


@pytest.mark.filterwarnings("ignore")  # of torch's exporters
@pytest.mark.parametrize(
    "export",
    [
        pytest.param(legacy(14, free=False), id="legacy, opset 14, batch of one"),
        pytest.param(legacy(17, free=True), id="legacy, opset 17"),
        pytest.param(dynamo(18, free=False), id="dynamo, opset 18, batch of one"),
        pytest.param(dynamo(None, free=True), id="dynamo, its default opset"),
    ],
)
@pytest.mark.parametrize("kind", [Excited, Transformer])
def test_what_is_served_of_an_export_is_what_torch_computes(
    kind: Callable[[], Any], export: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    export(network, tmp_path / "network.onnx")

    built = build(OnnxFile(tmp_path / "network.onnx"), name="net", repository=tmp_path / "models")

    with torch.no_grad():
        given = network(torch.from_numpy(PYTORCH.apply(face_crops())))
    raw = (given[0] if isinstance(given, tuple) else given).numpy()
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    embeddings = OnnxRuntime(built.path / "model.onnx").embed(face_crops())
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)
    config = (built.path.parent / "config.pbtxt").read_text()
    assert re.search(r"^max_batch_size: (32|1)$", config, re.MULTILINE)
