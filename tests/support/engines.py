"""Plans that no TensorRT wrote: a real header before bytes that mean nothing."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from arcface_builder.store import Parity, PlanIdentity, PlanManifest, StoredPlan, describe_plan
from arcface_builder.store.identity import PLATFORM

IDENTITY = PlanIdentity(
    model="arcface_r100",
    onnx_sha256="4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    tensorrt_version="10.16.1.11",
    sm="86",
    precision="fp16",
    min_batch_size=1,
    opt_batch_size=32,
    max_batch_size=32,
    settings={"workspace_size_mb": 1024, "hardware_compatibility": True},
)

PARITY = Parity(
    largest_drift_cosine=0.0003,
    max_drift_cosine=0.001,
    crops=256,
    compared_with="source file",
    details={"between_batches": 1e-9, "controls": {"another model": 0.1}},
)
"""The accuracy record of a good plan."""


def identity(**changes: Any) -> PlanIdentity:
    return replace(IDENTITY, **changes)


def plan(
    size_bytes: int = 2000, *, seed: int = 0, version: str = "10.16.1.11", magic: bytes = b"ftrt"
) -> bytes:
    numbers = bytes(int(part) & 0xFF for part in version.split("."))
    header = magic + bytes(20) + numbers
    return header + random.Random(seed).randbytes(size_bytes - len(header))


def manifest(content: bytes | None = None, of: PlanIdentity = IDENTITY, **changes: Any) -> PlanManifest:
    """A manifest that is true of a plan."""
    if content is None:
        content = plan(version=of.tensorrt_version)
    values: dict[str, Any] = {
        "identity": of,
        **describe_plan(content),
        "created": "2026-11-22T20:00:00+00:00",
        "gpu_name": "NVIDIA A10",
        "driver_version": "13.0",
        "precisions_used": {"Half": 121, "Float": 2},
        "parity": PARITY,
        "rebuild_command": "arcface-builder compile --name arcface_r100 --precision fp16",
        "tools": {"python": "3.12.3"},
    }
    return PlanManifest(**(values | changes))


def stored_plan(
    folder: Path,
    sm: str,
    content: str = "plan",
    *,
    version: int = 1,
    precision: str = "fp16",
    max_batch_size: int = 32,
    tensorrt_version: str = "11.1.0.106",
    platform: str = "linux-x86_64",
) -> StoredPlan:
    """A plan of model "m" as the store gives it, of bytes that nothing here loads."""
    of = identity(
        model="m",
        onnx_sha256=hashlib.sha256(str(version).encode()).hexdigest(),
        tensorrt_version=tensorrt_version,
        sm=sm,
        precision=precision,
        opt_batch_size=max_batch_size,
        max_batch_size=max_batch_size,
        settings={PLATFORM: platform},
    )
    data = plan(28, version=of.tensorrt_version) + f"{content} {version} {sm} {precision}".encode()
    path = folder / of.digest / of.filename
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return StoredPlan(path, manifest(data, of))


KEY, plan_key = IDENTITY, identity
