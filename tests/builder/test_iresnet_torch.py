"""Against PyTorch: the network as arcface_torch defines it, written out plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcface_builder.errors import CheckpointError
from arcface_builder.faces import noise
from arcface_builder.iresnet import BLOCKS
from arcface_builder.reference import ReferenceEmbedder
from arcface_builder.sources import Checkpoint
from photograph import face_crops

torch = pytest.importorskip("torch")
nn = torch.nn


def iresnet(depth: str) -> Any:
    """IResNet of recognition/arcface_torch/backbones/iresnet.py, in eval mode, with random statistics."""

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, before: int, channels: int, stride: int) -> None:
            super().__init__()
            self.bn1 = nn.BatchNorm2d(before, eps=1e-5)
            self.conv1 = nn.Conv2d(before, channels, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels, eps=1e-5)
            self.prelu = nn.PReLU(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(channels, eps=1e-5)
            self.downsample = None
            if stride != 1:
                shortcut = nn.Conv2d(before, channels, 1, stride=stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels, eps=1e-5))

        def forward(self, x: Any) -> Any:
            out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
            out = self.bn3(self.conv2(out))
            return out + (x if self.downsample is None else self.downsample(x))

    class IResNet(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(64, eps=1e-5)
            self.prelu = nn.PReLU(64)
            before = 64
            for stage, (count, channels) in enumerate(zip(BLOCKS[depth], (64, 128, 256, 512), strict=True)):
                blocks = [Block(before, channels, 2)] + [
                    Block(channels, channels, 1) for _ in range(count - 1)
                ]
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
                before = channels
            self.bn2 = nn.BatchNorm2d(512, eps=1e-5)
            self.dropout = nn.Dropout(p=0, inplace=True)
            self.fc = nn.Linear(512 * 7 * 7, 512)
            self.features = nn.BatchNorm1d(512, eps=1e-5)

        def forward(self, x: Any) -> Any:
            x = self.prelu(self.bn1(self.conv1(x)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))

    torch.manual_seed(0)
    network = IResNet()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("depth", ["r18", "r50"])
def test_a_state_dict_gives_pytorchs_embeddings(depth: str, tmp_path: Path) -> None:
    network = iresnet(depth)
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    source = Checkpoint(tmp_path / "backbone.pth").load()
    crops = np.concatenate([face_crops(), noise(2)])

    with torch.no_grad():
        raw = network(torch.from_numpy(source.caller.apply(crops))).numpy()

    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(ReferenceEmbedder(source).embed(crops), expected, rtol=0, atol=1e-5)


def test_a_whole_training_state_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict_backbone": {}}, tmp_path / "checkpoint.pt")

    with pytest.raises(CheckpointError, match="holds no plain state dict"):
        Checkpoint(tmp_path / "checkpoint.pt").load()


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "backbone.pth"
    torch.save(iresnet("r18").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])

    with pytest.raises(CheckpointError, match="is cut short"):
        Checkpoint(path).load()
