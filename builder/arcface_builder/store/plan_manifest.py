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

<<<<<<< HEAD
__all__ = ["ENDING", "Parity", "PlanManifest"]
=======
_MOST_BYTES: Final = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the plan's embeddings are from the source model's, or from what stood for it.

    Attributes:
        largest_drift_cosine: The largest 1 - cosine similarity over all crops.
        max_drift_cosine: The largest that was allowed.
        crops: How many crops were compared.
        compared_with: What stood for the source model: "source file", "fixed copy", or "served ONNX model".
        details: What else the gate found, in its own words.
    """

    largest_drift_cosine: float
    max_drift_cosine: float
    crops: int
    compared_with: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanManifest:
    """What is kept beside a plan, as JSON; without it a plan does not exist.

    Attributes:
        identity: What the plan was built from and for.
        plan_sha256: SHA-256 of the plan's bytes.
        plan_bytes: How many they are.
        created: When it was built, ISO 8601 with its offset from UTC.
        gpu_name: The GPU that it was built on.
        driver_version: The newest CUDA that its driver knows, as "13.0".
        precisions_used: How many layers run in which precision, as the engine inspector says.
        parity: The proof that let it be stored.
        rebuild_command: The command that builds it again, with the settings that have no flag before it.
        tools: Versions of what built it.
        notes: What deserves to be known of the build: a workspace that was halved, its time.
        refusals: In a repository's record: why more compact precisions were not taken; empty in a store.
        schema_version: Version of this record's fields.
    """

    identity: PlanIdentity
    plan_sha256: str
    plan_bytes: int
    created: str
    gpu_name: str
    driver_version: str
    precisions_used: Mapping[str, int]
    parity: Parity
    rebuild_command: str
    tools: Mapping[str, str]
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def created_at(self) -> datetime:
        """When it was built."""
        return datetime.fromisoformat(self.created)

    def has_refused(self, precision: str) -> bool:
        """Whether it is there in place of a plan of that precision."""
        return any(refusal.startswith(refusal_of(precision, "")) for refusal in self.refusals)

    def to_json(self) -> str:
        """Write the record as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"
>>>>>>> 5f83da9 (Source and graph: fewer modules, issues and fixes, input preprocessing; graph no longer imports source)


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
