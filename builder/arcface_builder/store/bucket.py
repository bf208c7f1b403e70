"""Plans in an S3 bucket, or in anything that speaks S3's protocol.

A manifest lies where its plan's key says. The plan lies one folder deeper, which is named after the plan's
SHA-256, so that two machines which upload the same plan at once do not overwrite each other's bytes. The
manifest is uploaded last; without it a plan does not exist.

This module needs boto3; ``open_store`` imports it when a bucket is used.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from boto3.exceptions import Boto3Error
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError

from arcface_client.contract import Progress, no_progress
from arcface_client.models.plan_manifest import PlanKey, PlanManifest

from ..errors import BucketError, PlanDamagedError
from .stored import MANIFEST_ENDING, Entry, StoredPlan, check_plan, read_manifest


class Bucket:
    """Plans in a bucket. Credentials, region and endpoint come from where boto3 looks for them.

    Every method raises ``BucketError`` where S3 refuses a request or does not answer.

    Args:
        name: The bucket's name.
        endpoint_url: Another service than Amazon's; None takes ``$AWS_ENDPOINT_URL`` or Amazon's.
        progress: Receives the name of a transfer and the share that is done.
        connect_timeout_s: Time allowed to connect, each time.
        read_timeout_s: Time allowed between two pieces of an answer.
        attempts: How often botocore tries a request, with growing pauses.

    Raises:
        BucketError: The endpoint or region cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        endpoint_url: str | None = None,
        progress: Progress = no_progress,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 20.0,
        attempts: int = 4,
    ) -> None:
        self._bucket = name
        self.name = f"bucket {name!r}"
        self._progress = progress
        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
        )
        with self._errors(""):
            self._s3 = Session().client("s3", endpoint_url=endpoint_url, config=config)

    def find(self, key: PlanKey) -> Entry | None:
        """Look for a plan's manifest."""
        return self._entry(key.key)

    def entries(self) -> Iterator[Entry]:
        """List the plans by their manifests, damaged ones included."""
        with self._errors("engines/"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix="engines/")
            names = [item["Key"] for page in pages for item in page.get("Contents", ())]
        for name in names:
            if name.endswith(f".plan{MANIFEST_ENDING}") and (
                entry := self._entry(name.removesuffix(MANIFEST_ENDING))
            ):
                yield entry

    def download(self, entry: Entry, folder: Path) -> Path:
        """Download a plan into a folder and compare it with its manifest.

        Raises:
            PlanDamagedError: It is missing, or is not what its manifest describes.
        """
        manifest = entry.usable_manifest()
        source, target = _plan_name(manifest), folder / manifest.identity.filename
        try:
            with target.open("wb") as file, self._errors(source):
                moved = self._report(f"down {target.name}", manifest.plan_bytes)
                self._s3.download_fileobj(self._bucket, source, file, Callback=moved)
        except BucketError as error:
            if isinstance(error.__cause__, ClientError) and _is_missing(error.__cause__):
                raise PlanDamagedError(f"{source} is missing from the {self.name}.") from error
            raise
        check_plan(target, manifest, where=f"{source} in the {self.name}")
        return target

    def upload(self, stored: StoredPlan) -> None:
        """Upload a plan that was checked: the plan first, its manifest last."""
        manifest = stored.manifest
        target = _plan_name(manifest)
        with stored.path.open("rb") as file, self._errors(target):
            moved = self._report(f"up {stored.path.name}", manifest.plan_bytes)
            self._s3.upload_fileobj(file, self._bucket, target, Callback=moved)
        record = manifest.identity.key + MANIFEST_ENDING
        with self._errors(record):
            self._s3.put_object(Bucket=self._bucket, Key=record, Body=manifest.to_json().encode())

    def remove(self, entry: Entry) -> None:
        """Remove a plan, its manifest first."""
        names = [entry.path + MANIFEST_ENDING]
        if entry.manifest is not None:
            names.append(_plan_name(entry.manifest))
        for name in names:
            with self._errors(name):
                self._s3.delete_object(Bucket=self._bucket, Key=name)

    def _entry(self, path: str) -> Entry | None:
        name = path + MANIFEST_ENDING
        with self._errors(name):
            try:
                content = self._s3.get_object(Bucket=self._bucket, Key=name)["Body"].read()
            except ClientError as error:
                if _is_missing(error):
                    return None
                raise
        return read_manifest(content, path=path, place=self.name)

    def _report(self, name: str, size_bytes: int) -> Callable[[int], None]:
        """What boto3 calls, from several threads, with the bytes that have just moved."""
        pieces: list[int] = []

        def moved(count: int) -> None:
            pieces.append(count)
            self._progress(name, min(1.0, sum(pieces) / size_bytes))

        return moved

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Pass on what S3 answers, in one line with bucket and key."""
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, RetriesExceededError, ValueError) as error:
            where = f"{self.name}, key {name}" if name else self.name
            raise BucketError(f"S3, {where}: {' '.join(str(error).split())}") from error


def _is_missing(error: ClientError) -> bool:
    return error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404")


def _plan_name(manifest: PlanManifest) -> str:
    folder, name = posixpath.split(manifest.identity.key)
    return f"{folder}/{manifest.plan_sha256[:12]}/{name}"
