from __future__ import annotations

import gc
import logging
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arcface_builder.errors import BucketUnreachableError, PlanDamagedError, PlanGoneError, PlanManifestError
from arcface_builder.store import DamagedManifest, LocalStore, PlanManifest, StoredPlan, open_store
from arcface_builder.store.s3 import S3Store
from support.engines import IDENTITY, identity, manifest, plan
from support.s3_server import BadWire, S3Server, hasty

CONTENT = plan(9_000_000)
"""More than boto3 moves in one piece."""

MANIFEST = manifest(CONTENT)
MANIFEST_KEY = f"{IDENTITY.key}.json"
PLAN_KEY = f"engines/{IDENTITY.prefix}/{MANIFEST.plan_sha256[:12]}/{IDENTITY.filename}"


@pytest.fixture
def engine(tmp_path: Path) -> StoredPlan:
    path = tmp_path / "built" / IDENTITY.filename
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return StoredPlan(path, MANIFEST)


@pytest.fixture
def bucket(s3: S3Server) -> S3Store:
    return S3Store("plans", endpoint_url=s3.url)


@pytest.fixture
def wire(s3: S3Server) -> Iterator[BadWire]:
    with BadWire(s3.port) as wire:
        yield wire
    with warnings.catch_warnings():
        # s3transfer leaves the answers that broke off to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_what_was_uploaded_is_downloaded_byte_for_byte(
    s3: S3Server, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)

    assert s3.keys("plans") == [PLAN_KEY, MANIFEST_KEY]
    assert bucket.find(IDENTITY) == MANIFEST
    assert bucket.find(identity(sm="90")) is None
    assert list(bucket.manifests()) == [MANIFEST]
    assert bucket.download(MANIFEST, tmp_path).read_bytes() == CONTENT


def test_the_manifest_is_uploaded_last(s3: S3Server, engine: StoredPlan, wire: BadWire) -> None:
    moved: list[list[str]] = []

    @contextmanager
    def watch(name: str, size_bytes: int) -> Iterator[Callable[[int], object]]:
        yield lambda count: moved.append(s3.keys("plans"))

    S3Store("plans", endpoint_url=s3.url, progress=watch).upload(engine)

    assert all(MANIFEST_KEY not in keys for keys in moved)
    assert MANIFEST_KEY in s3.keys("plans")


def test_progress_adds_up_to_the_plans_size(s3: S3Server, engine: StoredPlan, tmp_path: Path) -> None:
    told: dict[str, tuple[int, list[int]]] = {}

    @contextmanager
    def watch(name: str, size_bytes: int) -> Iterator[Callable[[int], object]]:
        told[name] = size_bytes, []
        yield told[name][1].append

    bucket = S3Store("plans", endpoint_url=s3.url, progress=watch)
    bucket.upload(engine)
    bucket.download(MANIFEST, tmp_path)

    assert list(told) == [f"up {IDENTITY.filename}", f"down {IDENTITY.filename}"]
    assert all(size == sum(counts) == len(CONTENT) for size, counts in told.values())


def test_two_builders_of_one_engine_leave_one_that_is_whole(
    bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    other = plan(seed=1)
    (tmp_path / "other.plan").write_bytes(other)
    bucket.upload(engine)
    bucket.upload(StoredPlan(tmp_path / "other.plan", manifest(other)))

    found = bucket.find(IDENTITY)

    assert found is not None
    assert bucket.download(found, tmp_path).read_bytes() == other
    assert bucket.download(MANIFEST, tmp_path).read_bytes() == CONTENT  # who read the first manifest


def test_a_removed_engine_is_gone(s3: S3Server, bucket: S3Store, engine: StoredPlan) -> None:
    bucket.upload(engine)
    bucket.remove(MANIFEST)
    assert s3.keys("plans") == []
    assert bucket.find(IDENTITY) is None


def test_a_plan_that_is_pushed_while_it_is_removed_keeps_its_bytes(
    bucket: S3Store, engine: StoredPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload(engine)
    delete: Any = bucket._s3.delete_object

    def pushed_after(**of: str) -> None:
        delete(**of)
        bucket.upload(engine)  # by another machine, which built the same bytes or has them in its cache

    monkeypatch.setattr(bucket._s3, "delete_object", pushed_after)
    bucket.remove(MANIFEST)

    assert bucket.find(IDENTITY) == MANIFEST
    bucket.check(MANIFEST)


def test_an_altered_plan_is_refused_and_not_kept(
    s3: S3Server, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)
    s3.client.put_object(Bucket="plans", Key=PLAN_KEY, Body=plan(len(CONTENT), seed=1))
    with pytest.raises(PlanDamagedError, match=r"in the bucket 'plans' at .* has SHA-256"):
        bucket.download(MANIFEST, tmp_path)
    assert not (tmp_path / IDENTITY.filename).exists()


def test_a_plan_that_is_missing_beside_its_manifest_is_told(
    s3: S3Server, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)
    s3.client.delete_object(Bucket="plans", Key=PLAN_KEY)
    with pytest.raises(PlanDamagedError, match="is missing from the bucket"):
        bucket.check(MANIFEST)


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_plan_that_goes_after_it_was_listed_is_not_damaged(
    bucket: S3Store, engine: StoredPlan, tmp_path: Path, replaced: bool
) -> None:
    bucket.upload(engine)
    (listed,) = bucket.manifests()
    assert isinstance(listed, PlanManifest)
    assert bucket.remove(listed)
    if replaced:
        bucket.upload(LocalStore(tmp_path / "other").add(plan(seed=1), manifest(plan(seed=1))))

    with pytest.raises(PlanGoneError, match=r"in the bucket 'plans' at .* was removed or replaced"):
        bucket.check(listed)


def test_a_plan_that_is_pushed_again_while_it_is_looked_for_is_whole(
    bucket: S3Store, engine: StoredPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = S3Store._has

    def pushed_before(self: S3Store, listed: PlanManifest) -> bool:
        bucket.upload(engine)
        return has(self, listed)

    monkeypatch.setattr(S3Store, "_has", pushed_before)

    bucket.check(MANIFEST)


def test_a_manifest_of_another_plan_is_refused(s3: S3Server, bucket: S3Store) -> None:
    lie = manifest(of=identity(sm="90")).to_json().encode()
    s3.client.put_object(Bucket="plans", Key=MANIFEST_KEY, Body=lie)
    with pytest.raises(PlanManifestError, match="is that of another plan"):
        bucket.find(IDENTITY)
    (listed,) = bucket.manifests()
    assert isinstance(listed, DamagedManifest)
    assert listed.key == IDENTITY.key


def test_a_manifest_too_big_to_be_one_is_not_read(s3: S3Server, bucket: S3Store) -> None:
    s3.client.put_object(Bucket="plans", Key=MANIFEST_KEY, Body=bytes(2_000_000))
    with pytest.raises(PlanManifestError, match="has 2,000,000 bytes; expected a few"):
        bucket.find(IDENTITY)


def test_a_connection_that_is_cut_in_the_middle_is_tried_again(
    wire: BadWire, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)
    wire.cut_after_bytes, wire.cuts = 2_000_000, 2
    downloaded = S3Store("plans", endpoint_url=wire.url).download(MANIFEST, tmp_path)
    assert downloaded.read_bytes() == CONTENT
    assert wire.was_cut == 2


def test_a_connection_that_is_cut_again_and_again_is_one_clear_error(
    wire: BadWire, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)
    wire.cut_after_bytes = 2_000_000
    with pytest.raises(BucketUnreachableError, match=r"^Cannot reach the bucket 'plans' at http") as caught:
        hasty(wire.url).download(MANIFEST, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_replaced_while_it_is_removed_leaves_no_bytes_behind(
    s3: S3Server, bucket: S3Store, engine: StoredPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload(engine)
    newer = LocalStore(tmp_path / "other").add(plan(seed=1), manifest(plan(seed=1)))
    delete: Any = bucket._s3.delete_object

    def replaced_after(**of: Any) -> None:
        delete(**of)
        if of["Key"].endswith(".json"):
            bucket.upload(newer)

    monkeypatch.setattr(bucket._s3, "delete_object", replaced_after)
    assert bucket.remove(MANIFEST)

    assert bucket.find(IDENTITY) == newer.manifest
    assert len(s3.keys("plans")) == 2


def test_a_manifest_that_is_cut_in_the_middle_is_no_manifest(
    wire: BadWire, bucket: S3Store, engine: StoredPlan
) -> None:
    bucket.upload(engine)
    wire.cut_after_bytes = 1
    with pytest.raises(BucketUnreachableError):
        hasty(wire.url).find(IDENTITY)


def test_an_upload_that_is_cut_is_one_error_and_leaves_nothing(
    s3: S3Server, wire: BadWire, engine: StoredPlan
) -> None:
    wire.cut_upload_after_bytes = 2_000_000
    with pytest.raises(BucketUnreachableError, match=r"^Cannot reach the bucket 'plans' at http") as caught:
        hasty(wire.url).upload(engine)
    assert "\n" not in str(caught.value)
    assert wire.was_cut
    assert s3.keys("plans") == []
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket="plans")


def test_a_list_that_takes_several_answers_is_whole(
    s3: S3Server, bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    wanted = [manifest(of=identity(sm=str(sm))) for sm in range(80, 85)]
    for record in wanted:
        key = f"{record.identity.key}.json"
        s3.client.put_object(Bucket="plans", Key=key, Body=record.to_json().encode())
    assert len(s3.keys("plans")) == 2  # of one answer

    assert {record.identity.sm for record in bucket.manifests() if isinstance(record, PlanManifest)} == {
        record.identity.sm for record in wanted
    }


def test_a_slow_bucket_is_waited_for(
    wire: BadWire, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)
    wire.bytes_per_s = 8e6
    started = time.monotonic()
    assert hasty(wire.url).download(MANIFEST, tmp_path).read_bytes() == CONTENT
    assert time.monotonic() - started > 0.4


def test_a_bucket_that_says_nothing_is_given_up(wire: BadWire, bucket: S3Store, engine: StoredPlan) -> None:
    bucket.upload(engine)
    wire.bytes_per_s = 100
    with pytest.raises(BucketUnreachableError, match="Read timeout"):
        hasty(wire.url).find(IDENTITY)


def test_the_documentation_says_how_long_that_takes() -> None:
    patience = S3Store.__init__.__kwdefaults__
    assert patience
    said = "{attempts} attempts, {connect_timeout_s:g} s to connect, {read_timeout_s:g} s without a byte"
    page = Path(__file__).parents[2] / "docs/engines.md"
    assert said.format(**patience) in page.read_text()
    assert patience["attempts"] * patience["read_timeout_s"] <= 80


@pytest.mark.parametrize("watched", [True, False])
def test_who_watches_is_told_before_the_first_wait(
    watched: bool, s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    caplog.set_level(logging.INFO, "arcface_builder")

    open_store("plans", endpoint_url=s3.url)

    assert caplog.messages == [f"Asking the bucket 'plans' at {s3.url}"] * watched


@pytest.mark.parametrize("listening", [True, False], ids=["hangs up", "nobody listens"])
def test_an_endpoint_that_cannot_be_reached_is_told(wire: BadWire, listening: bool) -> None:
    wire.refuse = True
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(BucketUnreachableError, match=r"check the network and --endpoint-url"):
        hasty(wire.url if listening else free).find(IDENTITY)


def test_what_has_come_in_the_place_of_a_listed_plan_is_not_removed(
    s3: S3Server, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)
    (listed,) = bucket.manifests()
    assert not isinstance(listed, DamagedManifest)
    newer = plan(seed=1)
    (tmp_path / IDENTITY.filename).write_bytes(newer)
    bucket.upload(StoredPlan(tmp_path / IDENTITY.filename, manifest(newer)))

    assert not bucket.remove(listed)

    assert bucket.find(IDENTITY) == manifest(newer)
    bucket.check(manifest(newer))
    assert bucket.remove(manifest(newer))
    assert bucket.find(IDENTITY) is None
