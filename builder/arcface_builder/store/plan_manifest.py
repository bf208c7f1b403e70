"""The record of a plan: what it is, what was measured on it, and how to make it again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from arcface_client.errors import ManifestError, ManifestSchemaError
from arcface_client.models.checksum import sha256_of
from arcface_client.models.manifest import PlanManifest
from arcface_client.models.manifest import PlanParity as Parity

from ..errors import PlanDamagedError, PlanManifestError, PlanSchemaError
from .plan_header import plan_version

ENDING: Final = ".json"
"""What a manifest's name has after its plan's."""

__all__ = ["ENDING", "Parity", "PlanManifest"]


def refusal_of(precision: str, reason: str) -> str:
    """Say why a plan of a precision was not taken, as ``refusals`` has it."""
    return f"{precision} was refused: {reason}"


def read_manifest(text: str | bytes, *, key: str, place: str) -> PlanManifest:
    """Read a stored plan's manifest and check that it can be true.

    Args:
        text: What was stored.
        key: Where its plan is stored, which must be where its identity belongs.
        place: In what, for messages.

    Raises:
        PlanSchemaError: Another version of this project wrote it.
        PlanManifestError: It is damaged, or belongs to another plan.
    """
    where = f"The manifest of {key} in the {place}"
    manifest = parse_manifest(text, where)
    if manifest.identity.key != key:
        raise PlanManifestError(f"{where} is that of another plan, {manifest.identity.key}.")
    return manifest


def parse_manifest(text: str | bytes, where: str) -> PlanManifest:
    """Read a manifest, wherever it is, and check that it can be true.

    Args:
        text: The manifest.
        where: Where it is, for messages.

    Raises:
        PlanSchemaError: Another version of this project wrote it.
        PlanManifestError: It is damaged.
    """
    try:
        return PlanManifest.parse(text, where)
    except ManifestSchemaError as error:
        raise PlanSchemaError(str(error)) from error
    except ManifestError as error:
        raise PlanManifestError(str(error)) from error


def describe_plan(plan: bytes | Path) -> dict[str, Any]:
    """The two fields that a plan's bytes give: ``PlanManifest(**describe_plan(plan), ...)``."""
    if isinstance(plan, bytes):
        return {"plan_sha256": hashlib.sha256(plan).hexdigest(), "plan_bytes": len(plan)}
    return {"plan_sha256": sha256_of(plan), "plan_bytes": plan.stat().st_size}


def check_plan(plan: bytes | Path, manifest: PlanManifest, *, where: str) -> None:
    """Check that a plan's bytes are those that its manifest describes.

    Raises:
        PlanDamagedError: They are not, or they are no plan.
        PlanManifestError: The plan's header names another TensorRT than its manifest.
    """
    size_bytes = len(plan) if isinstance(plan, bytes) else plan.stat().st_size
    if size_bytes != manifest.plan_bytes:
        raise PlanDamagedError(
            f"{where} has {size_bytes:,} bytes; its manifest says {manifest.plan_bytes:,}."
        )
    found = describe_plan(plan)
    if found["plan_sha256"] != manifest.plan_sha256:
        raise PlanDamagedError(
            f"{where} has SHA-256 {found['plan_sha256'][:12]}...; "
            f"its manifest says {manifest.plan_sha256[:12]}..."
        )
    _check_header(manifest, plan)


def _check_header(manifest: PlanManifest, plan: bytes | Path) -> None:
    version = plan_version(plan)
    if version is not None and not version.may_be(manifest.identity.tensorrt_version):
        raise PlanManifestError(
            f"The manifest of {manifest.identity.key} says TensorRT {manifest.identity.tensorrt_version}, "
            f"the plan's own header {version}."
        )
