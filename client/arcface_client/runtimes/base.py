"""What a runtime is, and what has to be known before the library behind one is imported."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
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
"""Unit embeddings, float32 [N, D], of BGR crops."""

_ROOT: Final = Path("/")


class Runtime(Protocol):
    """A loaded model with the contract's tensors."""

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch.

        Args:
            crops: C-contiguous uint8 [N, 112, 112, 3], BGR, N at least 1.

        Returns:
            float32 [N, D], rows of length one.
        """

    def close(self) -> None:
        """Free what the model holds; the runtime cannot be used afterwards."""


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


def batch_sizes(largest: int) -> list[int]:
    """The powers of two below the largest batch, and the largest batch."""
    return [*(2**power for power in range((largest - 1).bit_length())), largest]


def usable_cores() -> int:
    """Count the cores that this process can keep busy; 0 where the system does not tell.

    These are the physical cores that it may run on, since two threads on one core share its arithmetic units,
    and no more than its cgroup's CPU quota: a container with ``cpus: 0.5`` gets one thread.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = os.sched_getaffinity(0)
    siblings = [_ROOT / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in allowed]
    cores = len({file.read_text() for file in siblings}) if all(map(Path.is_file, siblings)) else len(allowed)
    return max(1, min(cores, math.ceil(min(_cpu_quotas(), default=cores))))


def _cpu_quotas() -> Iterator[float]:
    """The CPUs that the cgroup of this process, and each one above it, grants."""
    try:
        cgroups = (_ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in cgroups:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount, names = _ROOT / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, names = _ROOT / "sys/fs/cgroup" / controllers, ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container the path may be the host's, of which only the mount's root exists.
        for folder in (mount / path.strip("/"), *(mount / path.strip("/")).parents):
            with suppress(OSError):
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if quota not in ("max", "-1"):
                    yield int(quota) / int(period)
            if folder == mount:
                break


def has_avx2() -> bool:
    """Whether the processor has AVX2; true as well where the system does not list what it has."""
    flags = _cpu_flags()
    return flags is None or "avx2" in flags


def int8_instructions() -> str | None:
    """What the processor multiplies int8 numbers with: "AMX", "VNNI", or "" if it has neither.

    None where the system does not list what it has.
    """
    flags = _cpu_flags()
    if flags is None:
        return None
    return "AMX" if "amx_int8" in flags else "VNNI" if flags & {"avx512_vnni", "avx_vnni"} else ""


def _cpu_flags() -> set[str] | None:
    try:
        text = (_ROOT / "proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return None if flags is None else set(flags[1].split())


def switch_off_telemetry() -> None:
    """Keep an ONNX Runtime that is imported later from recording what it runs and sending it to its maker.

    Version 1.32 does so on Linux too: it writes paths and model names to ``~/.cache/Microsoft`` as soon as it
    is imported, before its ``disable_telemetry_events`` can be called. A value that the user has set is kept.
    """
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")


def provider_options(provider: str, gpu: int) -> dict[str, str]:
    """The options of an execution provider of ONNX Runtime: which GPU, and float32 instead of TF32."""
    return {"device_id": str(gpu), "use_tf32": "0"} if provider == CUDA else {}
