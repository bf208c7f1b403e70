"""What a place for plans holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .plan_manifest import PlanManifest

Objection: TypeAlias = Callable[[PlanManifest], "str | None"]
"""What there is against a stored plan, as a sentence; None if it is as good as a new one."""


def no_objection(_: PlanManifest) -> None:
    """Every plan is good that is what its manifest says."""


@dataclass(frozen=True)
class StoredPlan:
    """A plan in the local cache.

    Attributes:
        path: The plan's file; its SHA-256 was compared with the manifest's just now.
        manifest: What the plan is.
    """

    path: Path
    manifest: PlanManifest


@dataclass(frozen=True)
class DamagedManifest:
    """A manifest in a place's listing that cannot be believed.

    Attributes:
        key: Of the plan that it lies beside.
        problem: What is wrong with it.
        is_foreign: Whether another version of this project wrote it, which may well be able to read it.
    """

    key: str
    problem: str
    is_foreign: bool = False
