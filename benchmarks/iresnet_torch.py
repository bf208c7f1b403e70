"""arcface_torch's network in plain PyTorch, without other imports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Block(nn.Module):  # type: ignore[misc]
    """A residual block of recognition/arcface_torch/backbones/iresnet.py."""

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
        """Add the branch to its input."""
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):  # type: ignore[misc]
    """The whole network.

    Args:
        blocks: Residual blocks in each of the four stages.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=1e-5)
        self.prelu = nn.PReLU(64)
        before = 64
        for stage, (count, channels) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
            rest = [Block(channels, channels, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(Block(before, channels, 2), *rest))
            before = channels
        self.bn2 = nn.BatchNorm2d(512, eps=1e-5)
        self.dropout = nn.Dropout(p=0, inplace=True)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512, eps=1e-5)

    def forward(self, x: Any) -> Any:
        """Embed normalised RGB planes, [N, 3, 112, 112]."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))


def iresnet(blocks: Sequence[int]) -> Any:
    """A network in eval mode with random weights and statistics."""
    torch.manual_seed(0)
    network = IResNet(blocks)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()
