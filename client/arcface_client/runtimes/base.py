"""What a runtime is, and what has to be known before the library behind one is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from ..contract import Crops, Embeddings
from ..errors import InputError

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
COREML: Final = "CoreMLExecutionProvider"

TELEMETRY_VARIABLE: Final = "ORT_DISABLE_TELEMETRY"

ENTRIES: Final = {"session.force_spinning_stop": "1"}
"""ONNX Runtime's idle threads spin between the operators of a run, where it pays, and not between runs."""

Embed = Callable[[Crops], Embeddings]
"""Unit embeddings, float32 [N, 512], of BGR crops."""

_TOPOLOGY: Final = Path("/sys/devices/system/cpu")


class Runtime(Protocol):
    """A loaded model with the contract's tensors."""

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch.

        Args:
            crops: C-contiguous uint8 [N, 112, 112, 3], BGR, N at least 1.

        Returns:
            float32 [N, 512], rows of length one.
        """
        ...

    def close(self) -> None:
        """Free what the model holds; the runtime cannot be used afterwards."""
        ...


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


def read_device(text: object) -> Device:
    """Read a device's name, as PyTorch writes it: "cpu", "cuda", "cuda:1"; or "auto".

    Raises:
        InputError: The text names no device.
    """
    if isinstance(text, Device):
        return text
    match = re.fullmatch(r"(cpu|cuda|auto)|cuda:(\d{1,3})", str(text), re.ASCII)
    if match is None:
        raise InputError(f"device is {text!r}; expected 'cpu', 'cuda', 'cuda:N' for GPU N, or 'auto'.")
    kind: Any = match[1] or "cuda"
    return Device(kind, int(match[2] or 0))


def in_batches(embed: Embed, crops: Crops, size: int) -> Embeddings:
    """Embed at least one crop in batches of ``size``; the last batch may be smaller."""
    return np.concatenate([embed(crops[start : start + size]) for start in range(0, len(crops), size)])


def physical_cores() -> int:
    """Count the physical cores that this process may run on; 0 where the system does not tell.

    Two threads on one core share its arithmetic units, so the second one gains nothing.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list"
        if not siblings.is_file():
            return 0
        cores.add(siblings.read_text())
    return len(cores)


def switch_off_telemetry() -> None:
    """Keep an ONNX Runtime that is imported later from recording what it runs and sending it to its maker.

    Version 1.32 does so on Linux too: it writes paths and model names to ``~/.cache/Microsoft`` as soon as it
    is imported, before its ``disable_telemetry_events`` can be called. A value that the user has set is kept.
    """
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")
