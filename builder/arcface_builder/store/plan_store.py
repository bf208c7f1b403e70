"""The store of plans: the cache of this machine, and behind it a bucket that machines share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from arcface_client.contract import Progress, no_progress
from arcface_client.errors import require
from arcface_client.models.plan_manifest import PlanKey, PlanManifest

from ..errors import BucketError, PlanDamagedError
from .local import LocalStore
from .stored import GPU, Entry, StoredPlan

if TYPE_CHECKING:  # boto3 is an extra
    from .bucket import Bucket

_log = logging.getLogger(__name__)


def open_store(
    bucket: str | None = None,
    *,
    endpoint_url: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress = no_progress,
) -> PlanStore:
    """Open the cache and, if one is named, a bucket behind it; see ``LocalStore`` and ``S3Bucket``.

    Raises:
        MissingExtraError: boto3 is not installed.
        BucketError: The endpoint or region cannot be used.
    """
    local = LocalStore(cache_dir)
    if not bucket:
        return PlanStore(local)
    require("boto3", extra="s3", purpose=f"The bucket {bucket!r}")
    from .bucket import Bucket

    return PlanStore(local, Bucket(bucket, endpoint_url=endpoint_url, progress=progress))


class PlanStore:
    """Where a plan is looked for before it is built, and kept afterwards.

    Every method raises ``CacheError`` if the cache cannot be used, and ``BucketError`` if the bucket cannot.
    In ``fetch`` and ``put`` the bucket's failure is a warning.
    """

    def __init__(self, local: LocalStore, remote: Bucket | None = None) -> None:
        self.local = local
        self.remote = remote

    @property
    def places(self) -> str:
        """Where plans are looked for, for messages."""
        return f"{self.local.name} and {self.remote.name}" if self.remote else self.local.name

    def fetch(self, key: PlanKey) -> StoredPlan | None:
        """Find a plan, checked byte for byte; a bucket that fails is a warning."""
        try:
            return self.pull(key)
        except (BucketError, PlanDamagedError) as error:
            _log.warning("The bucket has no usable %s: %s", key.filename, error)
            return None

    def pull(self, key: PlanKey) -> StoredPlan | None:
        """Find a plan in the cache, or download it from the bucket.

        Raises:
            PlanDamagedError: The bucket's plan is not what its manifest says.
        """
        if stored := self.local.find(key):
            return stored
        if self.remote is None or (entry := self.remote.find(key)) is None:
            return None
        with self.local.staging() as folder:
            stored = self.local.add(self.remote.download(entry, folder), entry.usable_manifest())
        _log.info("Downloaded %s from the %s", key.filename, self.remote.name)
        return stored

    def put(self, plan: Path, manifest: PlanManifest) -> StoredPlan:
        """Move a plan from a ``staging`` folder into the cache, and upload it; a failing bucket is a warning.

        Raises:
            PlanDamagedError: The plan is not what the manifest describes; nothing was stored.
        """
        stored = self.local.add(plan, manifest)
        if self.remote:
            try:
                self.remote.upload(stored)
            except BucketError as error:
                _log.warning(
                    "%s is in the cache only: %s. `arcface-builder engines push` uploads it later.",
                    stored.path.name,
                    error,
                )
        return stored

    def entries(self) -> list[tuple[Entry, list[str]]]:
        """List every plan with the places that have it, "cache" and "bucket".

        Where two machines built one plan, their bytes differ, and it is listed twice.
        """
        found: dict[tuple[str, str], tuple[Entry, list[str]]] = {}
        for name, place in (("cache", self.local), ("bucket", self.remote)):
            for entry in place.entries() if place else ():
                content = entry.manifest.plan_sha256 if entry.manifest else name
                found.setdefault((entry.path, content), (entry, []))[1].append(name)
        return list(found.values())


def prunable(
    manifests: Iterable[PlanManifest],
    now: datetime,
    *,
    keep: int = 0,
    older_than_days: float = 0.0,
    tensorrt_version: str | None = None,
) -> list[PlanManifest]:
    """Choose the plans that may be removed, oldest first; all conditions must hold.

    Args:
        manifests: The plans.
        now: The time.
        keep: The plan is not among this many newest for the same model, precision, architecture and platform.
        older_than_days: It was built at least this long ago.
        tensorrt_version: It was built by this TensorRT.
    """
    newer: Counter[tuple[object, ...]] = Counter()
    chosen = []
    for manifest in sorted(manifests, key=lambda manifest: manifest.created_at, reverse=True):
        key = manifest.identity
        use = (key.filename, key.platform, key.settings.get(GPU), key.max_batch_size)
        newer[use] += 1
        is_old = now - manifest.created_at >= timedelta(days=older_than_days)
        if newer[use] > keep and is_old and tensorrt_version in (None, key.tensorrt_version):
            chosen.append(manifest)
    return chosen[::-1]
