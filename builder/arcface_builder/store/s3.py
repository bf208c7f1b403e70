"""Plans in an S3 bucket, or in anything that speaks S3's protocol.

A manifest lies where its plan's identity belongs. The plan lies one folder deeper, which is named after
the plan's SHA-256: two machines that build the same plan at once upload two plans and two manifests,
and whichever manifest comes last, it finds its own plan. The manifest is uploaded last; without it a
plan does not exist.

This module needs boto3, and is imported when a bucket is used.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import ClientError

from ..errors import (
    BucketError,
    PlanDamagedError,
    PlanError,
    PlanGoneError,
    PlanManifestError,
    PlanSchemaError,
)
from .identity import PlanIdentity
from .plan_manifest import ENDING, PlanManifest, check_plan, read_manifest
from .s3_answers import checked, manifest_text, refuse_redirects
from .s3_errors import bucket_errors, is_missing
from .stored_plan import DamagedManifest, StoredPlan

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""From a name and a size in bytes: a context that gives what is told of each few bytes that moved."""


class S3Store:
    """Plans in a bucket. Credentials and region come from where boto3 looks for them.

    Args:
        bucket: The bucket's name.
        endpoint_url: Another service than Amazon's; None takes ``$AWS_ENDPOINT_URL`` or Amazon's.
        progress: How to show a transfer.
        connect_timeout_s: Time allowed to connect, each time.
        read_timeout_s: Time allowed between two pieces of an answer.
        attempts: How often botocore tries a request, with growing pauses.

    Attributes:
        name: What it is called in messages.
        flags: What names it in a command.

    Raises:
        BucketError: The name or the endpoint cannot be used.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None = None,
        progress: Progress = lambda name, size: nullcontext(lambda count: None),
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 20.0,
        attempts: int = 4,
    ) -> None:
        self._bucket = bucket
        self.name = f"bucket {bucket!r}" + (f" at {endpoint_url}" if endpoint_url else "")
        self.flags = ["--bucket", bucket, *(["--endpoint-url", endpoint_url] if endpoint_url else [])]
        self._progress = progress
        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
        )
        with bucket_errors(self.name):
            try:
                self._s3 = Session().client("s3", endpoint_url=endpoint_url, config=config)
            except ValueError as error:  # of boto3's own settings, too: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION
                raise BucketError(
                    f"Cannot use the {self.name}: {error}; expected an endpoint such as "
                    "https://s3.example.org:9000, and a region such as eu-central-1."
                ) from error
        if "@" in urlsplit(self._s3.meta.endpoint_url).netloc:  # which every error would print
            raise BucketError("The endpoint's URL holds a user or a password; give them by AWS_* variables.")
        refuse_redirects(self._s3, self.name)

    def find(self, identity: PlanIdentity) -> PlanManifest | None:
        """Look for a plan's manifest.

        Raises:
            PlanManifestError: It is damaged, or belongs to another plan.
            StoreError: The bucket cannot be used.
        """
        return self._read_manifest(identity.key)

    def manifests(self, model: str = "") -> Iterator[PlanManifest | DamagedManifest]:
        """Every plan's manifest, or what is wrong with it; of one model, if its name is given.

        Raises:
            StoreError: The bucket cannot be used.
        """
        beginning, ending = f"{model}-" if model else "", f".plan{ENDING}"
        with bucket_errors(self.name):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix="engines/")
            lists = [checked(page, has="Name", place=self.name).get("Contents", ()) for page in pages]
        keys = [item["Key"] for items in lists for item in items]
        wanted = [
            key for key in keys if posixpath.basename(key).startswith(beginning) and key.endswith(ending)
        ]
        for key in (key.removesuffix(ENDING) for key in wanted):
            try:
                manifest = self._read_manifest(key)
            except PlanManifestError as error:
                yield DamagedManifest(key, str(error), is_foreign=isinstance(error, PlanSchemaError))
            else:
                if manifest:  # not removed meanwhile
                    yield manifest

    def download(self, manifest: PlanManifest, folder: Path) -> Path:
        """Download a plan into a folder and compare it with its manifest.

        Raises:
            PlanGoneError: It is no longer the plan that was listed.
            PlanError: It is missing or is not what its manifest describes; it is not in the folder.
            StoreError: The bucket cannot be used.
        """
        target = folder / manifest.identity.filename
        with target.open("wb") as file:
            self._download(manifest, file)
        try:
            check_plan(target, manifest, where=self._where(manifest))
        except PlanError:
            target.unlink()
            raise
        return target

    def check(self, manifest: PlanManifest) -> None:
        """Download a plan for nothing but to compare it with its manifest.

        Raises:
            PlanGoneError: It is no longer the plan that was listed.
            PlanError: It is missing or is not what its manifest describes.
            StoreError: The bucket cannot be used.
        """
        plan = io.BytesIO()  # some hundred megabytes at most, and no disk that may be full
        self._download(manifest, plan)
        check_plan(plan.getvalue(), manifest, where=self._where(manifest))

    def has_plan(self, manifest: PlanManifest) -> bool:
        """Whether the file that a manifest names is there and as long as it should be; nothing is downloaded.

        Raises:
            StoreError: The bucket cannot be used.
        """
        with bucket_errors(self.name):
            try:
                found = self._s3.head_object(Bucket=self._bucket, Key=_plan_key(manifest))
            except ClientError as error:
                if not is_missing(error):
                    raise
                return False
        return bool(found["ContentLength"] == manifest.plan_bytes)

    def upload(self, stored: StoredPlan) -> None:
        """Upload a plan that was checked: the plan first, its manifest last.

        Raises:
            StoreError: The bucket cannot be used; the plan is not visible there.
        """
        manifest = stored.manifest
        with (
            self._progress(f"up {stored.path.name}", manifest.plan_bytes) as moved,
            stored.path.open("rb") as file,
            bucket_errors(self.name),
        ):
            self._s3.upload_fileobj(file, self._bucket, _plan_key(manifest), Callback=moved)
            answer = self._s3.put_object(
                Bucket=self._bucket,
                Key=manifest.identity.key + ENDING,
                Body=manifest.to_json().encode(),
                ContentType="application/json",
            )
            checked(answer, has="ETag", place=self.name)

    def remove(self, manifest: PlanManifest) -> bool:
        """Remove a plan, its manifest first, unless another one has taken its place since it was listed.

        Returns:
            Whether it was removed here.

        Raises:
            PlanManifestError: Its manifest is damaged.
            StoreError: The bucket cannot be used.
        """
        if not self._has(manifest):
            return False
        with bucket_errors(self.name):
            self._s3.delete_object(Bucket=self._bucket, Key=manifest.identity.key + ENDING)
        if not self._has(manifest):  # or these were just pushed again
            with bucket_errors(self.name):
                self._s3.delete_object(Bucket=self._bucket, Key=_plan_key(manifest))
        return True

    def _has(self, manifest: PlanManifest) -> bool:
        """Whether the manifest that is there says the same bytes; raises a PlanManifestError if damaged."""
        there = self.find(manifest.identity)
        return there is not None and there.plan_sha256 == manifest.plan_sha256

    def _download(self, manifest: PlanManifest, file: BinaryIO) -> None:
        if self._fetched(manifest, file):
            return
        if not self._has(manifest):
            raise PlanGoneError(
                f"{self._where(manifest)} was removed or replaced while it was looked at; look again."
            )
        if not self._fetched(manifest, file):  # it may have been pushed again since
            raise PlanDamagedError(
                f"{_plan_key(manifest)} is missing from the {self.name} beside its manifest."
            )

    def _fetched(self, manifest: PlanManifest, file: BinaryIO) -> bool:
        """Download a plan's bytes; tells whether they are there."""
        file.seek(0)
        file.truncate()
        with (
            self._progress(f"down {manifest.identity.filename}", manifest.plan_bytes) as moved,
            bucket_errors(self.name),
        ):
            try:
                self._s3.download_fileobj(self._bucket, _plan_key(manifest), file, Callback=moved)
            except ClientError as error:
                if not is_missing(error):
                    raise
                return False
        return True

    def _where(self, manifest: PlanManifest) -> str:
        return f"{_plan_key(manifest)} in the {self.name}"

    def _read_manifest(self, key: str) -> PlanManifest | None:
        with bucket_errors(self.name):
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=key + ENDING)
                text = manifest_text(answer, key=key, place=self.name)
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
        return read_manifest(text, key=key, place=self.name)


def _plan_key(manifest: PlanManifest) -> str:
    folder, name = posixpath.split(manifest.identity.key)
    return f"{folder}/{manifest.plan_sha256[:12]}/{name}"
