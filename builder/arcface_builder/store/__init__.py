"""Where plans are kept: named, checked, cached on this machine, and shared through a bucket."""

from __future__ import annotations

from .identity import PRECISIONS, EngineIdentity, sm_of
from .local import LocalStore, default_cache_dir
from .opening import open_store
from .plan_header import plan_version
from .plan_manifest import Parity, PlanManifest, check_plan, describe_plan, read_manifest
from .store import EngineStore
from .stored_engine import DamagedManifest, StoredEngine

__all__ = [
    "PRECISIONS",
    "DamagedManifest",
    "EngineIdentity",
    "EngineStore",
    "LocalStore",
    "Parity",
    "PlanManifest",
    "StoredEngine",
    "check_plan",
    "default_cache_dir",
    "describe_plan",
    "open_store",
    "plan_version",
    "read_manifest",
    "sm_of",
]
