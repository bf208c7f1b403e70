from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from arcface_builder.errors import (
    BucketError,
    BucketUnreachableError,
    OptionError,
    PlanDamagedError,
    PlanSchemaError,
)
from arcface_builder.store import LocalStore, PlanManifest, PlanStore, open_store
from arcface_builder.store.pruning import PruneRule
from support.children import run, start
from support.engines import IDENTITY, identity, manifest, plan
from support.s3_server import BadWire, S3Server

NAME = IDENTITY.filename


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "arcface_builder")


def machine(folder: Path, s3: S3Server | None = None, bucket: str = "plans") -> PlanStore:
    """The store as one of several machines has it."""
    return open_store(bucket if s3 else None, endpoint_url=s3.url if s3 else None, cache_dir=folder)


def test_a_miss_says_why_and_a_hit_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = machine(tmp_path)
    assert store.fetch(IDENTITY) is None
    engine = store.put(plan(), manifest())
    assert store.fetch(IDENTITY) == engine
    assert store.fetch(identity(tensorrt_version="11.1.0.106", max_batch_size=64)) is None
    assert caplog.messages == [
        f"Miss: {NAME} is not in the local cache.",
        f"Hit: {NAME} is in the local cache, {engine.path.parent}",
        f"Miss: {NAME} is not in the local cache; the nearest there has "
        "tensorrt_version 10.16.1.11, not 11.1.0.106, max_batch_size 32, not 64.",
    ]


def test_what_one_machine_builds_another_finds(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    machine(tmp_path / "one", s3).put(plan(), manifest())
    other = machine(tmp_path / "other", s3)

    fetched = other.fetch(IDENTITY)

    assert fetched is not None
    assert fetched.path == tmp_path / "other" / IDENTITY.key
    assert fetched.path.read_bytes() == plan()
    assert caplog.messages == [f"Hit: {NAME} came from the bucket 'plans' at {s3.url}"]
    assert machine(tmp_path / "other").fetch(IDENTITY) == fetched
    assert other.manifests() == [manifest()]
    assert other.fetch(identity(sm="90")) is None
    assert caplog.messages[-1].startswith(
        "Miss: arcface_r100-fp16-sm90.plan is not in the local cache or the b"
    )


def test_a_miss_tells_of_what_the_bucket_has(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    machine(tmp_path / "one", s3).put(plan(), manifest())

    assert machine(tmp_path / "other", s3).fetch(identity(max_batch_size=64)) is None
    assert caplog.messages[-1].endswith("; the nearest there has max_batch_size 32, not 64.")


@pytest.mark.parametrize("trouble", ["missing", "forbidden", "unreachable"])
def test_compile_goes_on_without_a_bucket_that_fails_and_says_so(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    store = machine(tmp_path, s3, "nowhere" if trouble == "missing" else "plans")
    s3.check_rights_from_now_on(trouble == "forbidden")
    if trouble == "unreachable":
        with BadWire(s3.port) as wire:
            wire.refuse = True
            store = open_store("plans", endpoint_url=wire.url, cache_dir=tmp_path)
            check_that_it_goes_on(store, caplog, "Cannot reach the bucket")
    else:
        check_that_it_goes_on(store, caplog, "There is no bucket" if trouble == "missing" else "is forbidden")


def check_that_it_goes_on(store: PlanStore, caplog: pytest.LogCaptureFixture, problem: str) -> None:
    assert store.fetch(IDENTITY) is None
    engine = store.put(plan(), manifest())
    assert engine.path.read_bytes() == plan()
    miss, kept = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert miss.getMessage().startswith(f"Miss: there is no good {NAME} in the local cache. ")
    assert kept.getMessage().startswith(f"{NAME} is in the local cache only. ")
    assert all(problem in record.getMessage() for record in (miss, kept))
    with pytest.raises((BucketError, BucketUnreachableError)):
        store.push(manifest())
    with pytest.raises((BucketError, BucketUnreachableError)):
        store.pull(identity(sm="90"))


def test_a_damaged_plan_in_the_bucket_is_refused_built_anew_and_replaced(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    machine(tmp_path / "one", s3).put(plan(), manifest())
    (plan_key,) = (key for key in s3.keys("plans") if key.endswith(".plan"))
    s3.client.put_object(Bucket="plans", Key=plan_key, Body=plan(seed=1))
    other = machine(tmp_path / "other", s3)

    with pytest.raises(PlanDamagedError):
        other.pull(IDENTITY)
    assert other.fetch(IDENTITY) is None
    assert "has SHA-256" in caplog.messages[-1]
    assert not list((tmp_path / "other").rglob("*.plan"))
    other.put(plan(seed=2), manifest(plan(seed=2)))

    fetched = machine(tmp_path / "third", s3).fetch(IDENTITY)
    assert fetched is not None
    assert fetched.path.read_bytes() == plan(seed=2)


def test_a_good_plan_in_a_bucket_that_was_away_for_a_while_is_kept(tmp_path: Path, s3: S3Server) -> None:
    first, second = plan(), plan(seed=1)
    machine(tmp_path / "one", s3).put(first, manifest(first))
    other = machine(tmp_path / "other", s3)

    stored = other.put(second, manifest(second))

    assert stored.path.read_bytes() == second
    assert machine(tmp_path / "third", s3).manifests() == [manifest(first)]
    other.put(second, manifest(second), lambda found: "Another one is asked for.")
    assert machine(tmp_path / "third", s3).manifests() == [manifest(second)]


def test_a_push_leaves_what_the_bucket_has_unless_it_is_told_to_replace_it(
    tmp_path: Path, s3: S3Server
) -> None:
    machine(tmp_path / "one", s3).put(plan(), manifest())
    other = machine(tmp_path / "other", s3)
    second = manifest(plan(seed=1), created="2026-11-23T20:00:00+00:00")
    other.local.add(plan(seed=1), second)

    assert not other.push(second)
    assert other.manifests() == [second, manifest()]
    assert machine(tmp_path / "third", s3).manifests() == [manifest()]
    assert other.push(second, overwrite=True)
    assert machine(tmp_path / "third", s3).manifests() == [second]


def test_a_damaged_plan_is_not_pushed(tmp_path: Path, s3: S3Server) -> None:
    store = machine(tmp_path, s3)
    store.local.add(plan(), manifest()).path.write_bytes(plan(seed=1))
    with pytest.raises(PlanDamagedError):
        store.push(manifest())
    assert s3.keys("plans") == []


def test_a_download_onto_a_full_disk_leaves_nothing(tmp_path: Path, s3: S3Server) -> None:
    content = plan(2_000_000)
    machine(tmp_path / "one", s3).put(content, manifest(content))
    code = """
import resource, sys
from pathlib import Path
from arcface_builder.errors import CacheError
from arcface_builder.store import open_store
from support.engines import IDENTITY
store = open_store("plans", endpoint_url=sys.argv[1], cache_dir=Path(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    store.pull(IDENTITY)
except CacheError as error:
    print(error)
"""
    assert run(code, s3.url, tmp_path / "full").startswith("No space left in the cache ")
    assert [path for path in (tmp_path / "full").rglob("*") if path.is_file()] == []


def test_parallel_builders_of_one_engine_build_it_once(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from arcface_builder.store import PlanStore, LocalStore
from support.engines import IDENTITY, manifest, plan
number, store = int(sys.argv[1]), PlanStore(LocalStore(Path(sys.argv[2])))
with store.building(IDENTITY):
    if store.fetch(IDENTITY) is None:
        print(number)
        store.put(plan(seed=number), manifest(plan(seed=number)))
"""
    builders = [start(code, number, tmp_path) for number in range(4)]
    (built,) = [printed for printed in (builder.communicate()[0] for builder in builders) if printed]
    assert [builder.returncode for builder in builders] == [0] * 4
    engine = LocalStore(tmp_path).find(IDENTITY)
    assert engine is not None
    assert engine.path.read_bytes() == plan(seed=int(built))


def test_what_another_version_pushed_is_replaced_only_on_request(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = machine(tmp_path, s3)
    store.put(plan(), manifest())
    key = f"{IDENTITY.key}.json"
    text = s3.client.get_object(Bucket="plans", Key=key)["Body"].read().decode()
    theirs = text.replace('"schema_version": 1', '"schema_version": 2')
    s3.client.put_object(Bucket="plans", Key=key, Body=theirs.encode())

    with pytest.raises(PlanSchemaError, match="schema_version 2"):
        store.push(manifest())
    store.put(plan(), manifest())

    assert "is in the local cache only. The manifest of" in caplog.text
    push = f"arcface-builder engines push --bucket plans --endpoint-url {s3.url} --overwrite"
    assert f"Then run `{push}`" in caplog.text
    assert s3.client.get_object(Bucket="plans", Key=key)["Body"].read().decode() == theirs
    assert store.push(manifest(), overwrite=True)


def test_pushing_without_a_bucket_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no bucket"):
        machine(tmp_path).push(manifest())


NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def of_age(days: float, **changes: Any) -> PlanManifest:
    return manifest(of=identity(**changes), created=(NOW - timedelta(days=days)).isoformat())


OLD, MIDDLE, YOUNG = of_age(30, tensorrt_version="10.16.1.11"), of_age(20), of_age(1)
OTHER_SM = of_age(40, sm="90")
OTHER_TENSORRT = of_age(10, tensorrt_version="11.1.0.106")
FOR_ARM = of_age(50, settings={"platform": "linux-aarch64"})
FOR_ONE_MODEL = of_age(60, settings={"gpu": "NVIDIA A10"})
SMALLER = of_age(70, opt_batch_size=8, max_batch_size=8)
OTHERS_USE = [FOR_ARM, FOR_ONE_MODEL, SMALLER]


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        (PruneRule(keep=0), [OTHER_SM, OLD, MIDDLE, OTHER_TENSORRT, YOUNG]),
        (PruneRule(keep=1), [OLD, MIDDLE, OTHER_TENSORRT]),
        (PruneRule(keep=2), [OLD, MIDDLE]),
        (PruneRule(older_than_days=15), [OTHER_SM, OLD, MIDDLE]),
        (PruneRule(keep=3, older_than_days=15), [OLD]),
        (PruneRule(tensorrt_version="11.1.0.106"), [OTHER_TENSORRT]),
        (PruneRule(keep=2, tensorrt_version="11.1.0.106"), []),
    ],
    ids=str,
)
def test_pruning_chooses_that_for_which_all_conditions_hold(
    rule: PruneRule, chosen: list[PlanManifest]
) -> None:
    assert rule.choose([YOUNG, OLD, OTHER_SM, MIDDLE, OTHER_TENSORRT], NOW) == chosen


def test_the_newest_are_counted_among_those_that_can_take_each_others_place() -> None:
    assert PruneRule(keep=1).choose([YOUNG, *OTHERS_USE, MIDDLE], NOW) == [MIDDLE]


@pytest.mark.parametrize("values", [{}, {"keep": -1}, {"older_than_days": -0.5}], ids=str)
def test_pruning_without_a_condition_or_by_less_than_nothing_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="expected"):
        PruneRule(**values)  # type: ignore[arg-type]
