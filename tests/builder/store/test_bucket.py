from __future__ import annotations

import gc
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcface_builder.errors import BucketError, PlanDamagedError
from arcface_builder.store.bucket import Bucket
from arcface_builder.store.stored import Entry, StoredPlan
from support.engines import KEY, manifest, plan, plan_key
from support.proxy import Proxy
from support.s3_server import S3Server, hasty

CONTENT = plan(9_000_000)
"""More than boto3 moves in one piece."""

MANIFEST = manifest(CONTENT)
MANIFEST_NAME = f"{KEY.key}.json"
PLAN_NAME = f"engines/{KEY.prefix}/{MANIFEST.plan_sha256[:12]}/{KEY.filename}"
ENTRY = Entry(KEY.key, MANIFEST)


@pytest.fixture
def stored(tmp_path: Path) -> StoredPlan:
    path = tmp_path / "built" / KEY.filename
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return StoredPlan(path, MANIFEST)


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    return Bucket("plans", endpoint_url=s3.url)


@pytest.fixture
def wire(s3: S3Server) -> Iterator[Proxy]:
    with Proxy(f"127.0.0.1:{s3.port}") as wire:
        yield wire
    with warnings.catch_warnings():
        # s3transfer leaves the answers that broke off to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_an_uploaded_plan_is_downloaded_byte_for_byte(
    s3: S3Server, bucket: Bucket, stored: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(stored)

    assert s3.keys("plans") == [PLAN_NAME, MANIFEST_NAME]
    assert bucket.find(KEY) == ENTRY
    assert bucket.find(plan_key(sm="90")) is None
    assert list(bucket.entries()) == [ENTRY]
    assert bucket.download(ENTRY, tmp_path).read_bytes() == CONTENT
    bucket.remove(ENTRY)
    assert s3.keys("plans") == []


def test_the_manifest_is_uploaded_last_and_progress_ends_with_1(
    s3: S3Server, stored: StoredPlan, tmp_path: Path
) -> None:
    told: dict[str, list[float | None]] = {}

    def watch(stage: str, done: float | None) -> None:
        assert stage.startswith("down") or MANIFEST_NAME not in s3.keys("plans")
        told.setdefault(stage, []).append(done)

    bucket = Bucket("plans", endpoint_url=s3.url, progress=watch)
    bucket.upload(stored)
    bucket.download(ENTRY, tmp_path)

    assert MANIFEST_NAME in s3.keys("plans")
    assert list(told) == [f"up {KEY.filename}", f"down {KEY.filename}"]
    assert all(max(share or 0 for share in shares) == 1 for shares in told.values())


def test_an_altered_plan_is_refused(s3: S3Server, bucket: Bucket, stored: StoredPlan, tmp_path: Path) -> None:
    bucket.upload(stored)
    s3.client.put_object(Bucket="plans", Key=PLAN_NAME, Body=plan(len(CONTENT), seed=1))
    with pytest.raises(PlanDamagedError, match=r"in the bucket 'plans' has SHA-256"):
        bucket.download(ENTRY, tmp_path)
    s3.client.delete_object(Bucket="plans", Key=PLAN_NAME)
    with pytest.raises(PlanDamagedError, match="is missing from the bucket 'plans'"):
        bucket.download(ENTRY, tmp_path)


def test_an_upload_that_is_cut_is_one_line_and_leaves_nothing(
    s3: S3Server, wire: Proxy, stored: StoredPlan
) -> None:
    wire.cut_after_bytes = 2_000_000
    with pytest.raises(BucketError, match=rf"^S3, bucket 'plans', key {PLAN_NAME}: "):
        hasty(f"http://{wire.url}").upload(stored)
    assert wire.was_cut
    assert s3.keys("plans") == []
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket="plans")


def test_an_endpoint_that_does_not_answer_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(BucketError, match=rf"^S3, bucket 'plans', key {MANIFEST_NAME}: .*{free}"):
        hasty(free).find(KEY)


def test_what_s3_refuses_is_passed_on(s3: S3Server, bucket: Bucket, stored: StoredPlan) -> None:
    with pytest.raises(BucketError, match=r"^S3, bucket 'nowhere', key engines/: .*NoSuchBucket"):
        list(Bucket("nowhere", endpoint_url=s3.url).entries())
    s3.check_rights_from_now_on(True)
    uses: list[Callable[[], object]] = [
        lambda: bucket.find(KEY),
        lambda: bucket.upload(stored),
        lambda: bucket.remove(ENTRY),
    ]
    for use in uses:
        with pytest.raises(BucketError, match=r"^S3, bucket 'plans', key engines/.* \((403|Invalid|Access)"):
            use()


@pytest.mark.parametrize(("name", "endpoint"), [("s3://plans", None), ("plans", "localhost")])
def test_a_name_or_an_endpoint_that_cannot_be_used_is_one_line(
    name: str, endpoint: str | None, s3: S3Server
) -> None:
    with pytest.raises(BucketError, match=r"^S3, bucket '.*plans'.*: Invalid"):
        Bucket(name, endpoint_url=endpoint).find(KEY)
