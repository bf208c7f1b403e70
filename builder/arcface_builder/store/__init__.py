"""Where plans are kept: named, checked, cached on this machine, and shared through a bucket."""

from __future__ import annotations

from .identity import PlanIdentity, sm_of
from .local import LocalStore
from .opening import open_store
from .plan_header import plan_version
from .plan_manifest import Parity, PlanManifest, check_plan, describe_plan, read_manifest
from .store import PlanStore
from .stored_plan import DamagedManifest, StoredPlan

__all__ = [
    "DamagedManifest",
    "LocalStore",
    "Parity",
    "PlanIdentity",
    "PlanManifest",
    "PlanStore",
    "StoredPlan",
    "check_plan",
    "describe_plan",
    "open_store",
    "plan_version",
    "read_manifest",
    "sm_of",
]
