"""A plan that was found, checked, and can be opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .plan_manifest import PlanManifest


@dataclass(frozen=True)
class StoredEngine:
    """A plan in the local cache.

    Attributes:
        path: The plan's file; its SHA-256 was compared with the manifest's just now.
        manifest: What the plan is.
    """

    path: Path
    manifest: PlanManifest
