"""Plans in an S3 bucket, or in anything that speaks S3's protocol.

A manifest lies where its plan's key says. The plan lies one folder deeper, which is named after the plan's
SHA-256, so that two machines which upload the same plan at once do not overwrite each other's bytes. The
manifest is uploaded last; without it a plan does not exist.

This module needs boto3; ``open_store`` imports it when a bucket is used.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from arcface_client.models.plan_manifest import PlanKey, PlanManifest

from ..errors import BucketError, PlanDamagedError
from ..s3 import S3Bucket, is_missing
from .stored import MANIFEST_ENDING, Entry, StoredPlan, check_plan, read_manifest


class Bucket(S3Bucket):
    """Plans in a bucket.

    Every method raises ``BucketError`` where S3 refuses a request or does not answer.
    """

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
            if is_missing(error.__cause__):
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

    def push(self, stored: StoredPlan, *, overwrite: bool = False) -> bool:
        """Upload a plan that was checked, unless there is one with the same key; returns whether it was."""
        if not overwrite and self.find(stored.manifest.identity):
            return False
        self.upload(stored)
        return True

    def remove(self, entry: Entry) -> None:
        """Remove a plan, its manifest first."""
        names = [entry.path + MANIFEST_ENDING]
        if entry.manifest is not None:
            names.append(_plan_name(entry.manifest))
        for name in names:
            with self._errors(name):
                self._s3.delete_object(Bucket=self._bucket, Key=name)

    def _entry(self, path: str) -> Entry | None:
        found = self._read(path + MANIFEST_ENDING)
        return None if found is None else read_manifest(found[0], path=path, place=self.name)


def _plan_name(manifest: PlanManifest) -> str:
    folder, name = posixpath.split(manifest.identity.key)
    return f"{folder}/{manifest.plan_sha256[:12]}/{name}"
