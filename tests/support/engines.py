"""Plans that no TensorRT wrote: bytes that mean nothing, with true manifests."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from arcface_builder.store.stored import StoredPlan
from arcface_client.models.manifest import ModelFile
from arcface_client.models.plan_manifest import PlanKey, PlanManifest, PlanParity, SiblingManifest

KEY = PlanKey(
    model="arcface_r100",
    onnx_sha256="4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    graph_sha256="1" * 64,
    tensorrt_version="10.16.1.11",
    sm="86",
    precision="fp16",
    min_batch_size=1,
    opt_batch_size=32,
    max_batch_size=32,
    settings={"platform": "linux-x86_64", "workspace_size_mb": 1024, "hardware_compatible": True},
    max_drift_cosine=0.001,
)


def plan_key(**changes: Any) -> PlanKey:
    return replace(KEY, **changes)


def plan(size_bytes: int = 2000, *, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def manifest(content: bytes | None = None, of: PlanKey = KEY, **changes: Any) -> PlanManifest:
    """A manifest that is true of a plan."""
    content = plan() if content is None else content
    values: dict[str, Any] = {
        "identity": of,
        "plan_sha256": hashlib.sha256(content).hexdigest(),
        "plan_bytes": len(content),
        "created": "2026-11-22T20:00:00+00:00",
        "gpu_name": "NVIDIA A10",
        "driver_version": "13.0",
        "precisions_used": {"Half": 121, "Float": 2},
        "parity": PlanParity(
            largest_drift_cosine=1.3e-5, max_drift_cosine=1e-3, crops=256, compared_with="source file"
        ),
        "rebuild_command": "arcface-builder compile --name arcface_r100 --precision fp16",
        "tools": {"python": "3.12.3"},
    }
    return PlanManifest(**(values | changes))


def sibling_manifest(model: str, **changes: Any) -> SiblingManifest:
    """A manifest of a sibling, of a file that is not there."""
    values: dict[str, Any] = {
        "model": model,
        "version": 1,
        "created": "2026-11-22T20:00:00+00:00",
        "runtime": model.rpartition("_")[2],
        "runtime_version": "9.19.0",
        "device": "NVIDIA A10",
        "precision": "fp16",
        "onnx_sha256": KEY.onnx_sha256,
        "model_file": ModelFile(name="model.onnx", bytes=1, sha256=KEY.onnx_sha256),
        "parity": manifest().parity,
        "rebuild_command": "arcface-builder compile",
    }
    return SiblingManifest(**(values | changes))


def plan_file(folder: Path, content: bytes | None = None) -> Path:
    """A plan's file, to be moved into a store."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "built.plan"
    path.write_bytes(plan() if content is None else content)
    return path


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
    of = plan_key(
        model="m",
        onnx_sha256=hashlib.sha256(str(version).encode()).hexdigest(),
        tensorrt_version=tensorrt_version,
        sm=sm,
        precision=precision,
        opt_batch_size=max_batch_size,
        max_batch_size=max_batch_size,
        settings={"platform": platform},
    )
    data = f"{content} {version} {sm} {precision}".encode()
    path = folder / of.digest / of.filename
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return StoredPlan(path, manifest(data, of))
