"""Where plans are kept: a cache on this machine, and a bucket that machines share."""

from __future__ import annotations

from .local import LocalStore
from .plan_store import PlanStore, open_store, prunable
from .stored import (
    GPU,
    Entry,
    StoredPlan,
    check_plan,
    release_of,
    sm_of,
    this_platform,
)

__all__ = [
    "GPU",
    "Entry",
    "LocalStore",
    "PlanStore",
    "StoredPlan",
    "check_plan",
    "open_store",
    "prunable",
    "release_of",
    "sm_of",
    "this_platform",
]
