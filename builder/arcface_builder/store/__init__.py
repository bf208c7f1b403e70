"""Where plans are kept: named, checked, cached on this machine, and shared through a bucket."""

from __future__ import annotations

from .identity import PlanIdentity, check_sm, sm_of
from .local import LocalStore
from .opening import open_store
from .plan_manifest import Parity, PlanManifest, describe_plan
from .store import PlanStore
from .stored_plan import DamagedManifest, Objection, StoredPlan

__all__ = [
    "DamagedManifest",
    "LocalStore",
    "Objection",
    "Parity",
    "PlanIdentity",
    "PlanManifest",
    "PlanStore",
    "StoredPlan",
    "check_sm",
    "describe_plan",
    "open_store",
    "sm_of",
]
