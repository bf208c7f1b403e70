"""Names of devices, as PyTorch writes them: "cpu", "cuda", "cuda:1"; and "auto"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError


@dataclass(frozen=True)
class Device:
    """Where to compute in this process.

    Attributes:
        kind: "cpu", "cuda", or "auto" for the best that is there.
        index: Ordinal of the GPU.
    """

    kind: Literal["cpu", "cuda", "auto"]
    index: int = 0

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind


def read_device(text: str) -> Device:
    """Read a device's name.

    Raises:
        InputError: It is none that this project knows.
    """
    if text == "cpu":
        return Device("cpu")
    if text == "auto":
        return Device("auto")
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", text, re.ASCII) if isinstance(text, str) else None
    if match is None:
        raise InputError(f"device is {text!r}; expected 'cpu', 'cuda', 'cuda:N' for GPU N, or 'auto'.")
    return Device("cuda", int(match[1] or 0))
