"""Open the store that the settings name."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from arcface_client.cli.bars import transfer
from arcface_client.errors import require

from .local import LocalStore
from .store import PlanStore

_log = logging.getLogger(__name__)


def open_store(
    bucket: str | None = None, *, endpoint_url: str | None = None, cache_dir: Path | None = None
) -> PlanStore:
    """Open the local cache and, if one is named, a bucket behind it, with transfers shown on a terminal.

    Args:
        bucket: A bucket's name; None does without.
        endpoint_url: Another service than Amazon's; None takes ``$AWS_ENDPOINT_URL`` or Amazon's.
        cache_dir: Folder of the cache; None is ``cache_folder()``.

    Raises:
        MissingExtraError: boto3 is not installed.
        BucketError: The bucket's name or the endpoint cannot be used.
    """
    local = LocalStore(cache_dir)
    if not bucket:
        return PlanStore(local)
    require("boto3", extra="s3", purpose=f"The bucket {bucket!r}")
    from .s3 import S3Store

    remote = S3Store(bucket, endpoint_url=endpoint_url, progress=transfer)
    if sys.stderr is not None and sys.stderr.isatty():  # somebody watches, and the bucket may keep silent
        _log.info("Asking the %s", remote.name)
    return PlanStore(local, remote)
