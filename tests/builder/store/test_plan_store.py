from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from arcface_builder.errors import BucketError
from arcface_builder.store.plan_store import PlanStore, open_store, prunable
from arcface_builder.store.stored import StoredPlan
from arcface_client.models.plan_manifest import PlanManifest
from support.engines import KEY, manifest, plan, plan_file, plan_key
from support.s3_server import S3Server

NAME = KEY.filename


def machine(folder: Path, s3: S3Server | None = None, bucket: str = "plans") -> PlanStore:
    """The store as one of several machines has it."""
    return open_store(bucket if s3 else None, endpoint_url=s3.url if s3 else None, cache_dir=folder)


def put(store: PlanStore, content: bytes | None = None) -> StoredPlan:
    with store.local.staging() as folder:
        return store.put(plan_file(folder, content), manifest(content))


def listed(store: PlanStore) -> list[tuple[PlanManifest | None, list[str]]]:
    return [(entry.manifest, places) for entry, places in store.entries()]


def test_a_plan_that_one_machine_built_is_found_by_another(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "arcface_builder")
    put(machine(tmp_path / "one", s3))
    other = machine(tmp_path / "other", s3)

    fetched = other.fetch(KEY)

    assert fetched is not None
    assert fetched.path == tmp_path / "other" / KEY.key
    assert fetched.path.read_bytes() == plan()
    assert caplog.messages == [f"Downloaded {NAME} from the bucket 'plans'"]
    assert machine(tmp_path / "other").fetch(KEY) == fetched
    assert listed(other) == [(manifest(), ["cache", "bucket"])]
    assert other.fetch(plan_key(sm="90")) is None


@pytest.mark.parametrize("trouble", ["missing", "forbidden"])
def test_a_bucket_that_fails_is_a_warning_for_a_build_and_an_error_for_pull_and_push(
    trouble: str, tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = machine(tmp_path, s3, "nowhere" if trouble == "missing" else "plans")
    s3.check_rights_from_now_on(trouble == "forbidden")

    assert store.fetch(KEY) is None
    stored = put(store)

    assert stored.path.read_bytes() == plan()
    assert caplog.messages[0].startswith(f"The bucket has no usable {NAME}: S3, bucket ")
    assert caplog.messages[1].startswith(f"{NAME} is in the cache only: S3, bucket ")
    assert store.remote is not None
    with pytest.raises(BucketError):
        store.remote.push(stored)
    with pytest.raises(BucketError):
        store.pull(plan_key(sm="90"))


def test_a_damaged_plan_in_the_bucket_is_refused_and_replaced_by_the_next_build(
    tmp_path: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    put(machine(tmp_path / "one", s3))
    (name,) = (key for key in s3.keys("plans") if key.endswith(".plan"))
    s3.client.put_object(Bucket="plans", Key=name, Body=plan(seed=1))
    other = machine(tmp_path / "other", s3)

    assert other.fetch(KEY) is None
    assert "has SHA-256" in caplog.messages[-1]
    assert not list((tmp_path / "other").rglob("*.plan"))
    put(other, plan(seed=2))

    fetched = machine(tmp_path / "third", s3).fetch(KEY)
    assert fetched is not None
    assert fetched.path.read_bytes() == plan(seed=2)


def test_a_push_leaves_the_buckets_plan_unless_told_to_overwrite(tmp_path: Path, s3: S3Server) -> None:
    put(machine(tmp_path / "one", s3))
    second = put(machine(tmp_path / "other"), plan(seed=1))
    other = machine(tmp_path / "other", s3)

    assert other.remote is not None
    assert not other.remote.push(second)
    assert listed(other) == [(second.manifest, ["cache"]), (manifest(), ["bucket"])]
    assert other.remote.push(second, overwrite=True)
    assert listed(other) == [(second.manifest, ["cache", "bucket"])]


NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def of_age(days: float, **changes: Any) -> PlanManifest:
    return manifest(of=plan_key(**changes), created=(NOW - timedelta(days=days)).isoformat())


OLD, MIDDLE, YOUNG = of_age(30), of_age(20, graph_sha256="2" * 64), of_age(1, graph_sha256="3" * 64)
OTHER_SM = of_age(40, sm="90")
OTHER_TENSORRT = of_age(10, tensorrt_version="11.1.0.106")
FOR_ARM = of_age(50, settings={"platform": "linux-aarch64"})
FOR_ONE_GPU = of_age(60, settings={"platform": "linux-x86_64", "gpu": "NVIDIA A10"})
SMALLER = of_age(70, opt_batch_size=8, max_batch_size=8)


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ({"keep": 0}, [OTHER_SM, OLD, MIDDLE, OTHER_TENSORRT, YOUNG]),
        ({"keep": 1}, [OLD, MIDDLE, OTHER_TENSORRT]),
        ({"older_than_days": 15}, [OTHER_SM, OLD, MIDDLE]),
        ({"keep": 3, "older_than_days": 15}, [OLD]),
        ({"tensorrt_version": "11.1.0.106"}, [OTHER_TENSORRT]),
        ({"keep": 2, "tensorrt_version": "11.1.0.106"}, []),
    ],
    ids=str,
)
def test_pruning_chooses_the_plans_for_which_all_conditions_hold(
    rule: dict[str, Any], chosen: list[PlanManifest]
) -> None:
    assert prunable([YOUNG, OLD, OTHER_SM, MIDDLE, OTHER_TENSORRT], NOW, **rule) == chosen


def test_the_newest_are_counted_among_plans_that_can_replace_each_other() -> None:
    others = [FOR_ARM, FOR_ONE_GPU, SMALLER]
    assert prunable([YOUNG, *others, MIDDLE], NOW, keep=1) == [MIDDLE]


def test_a_plans_path_says_what_it_is_and_its_key_covers_everything() -> None:
    assert KEY.key == f"engines/{KEY.prefix}/arcface_r100-fp16-sm86.plan"
    changes: list[dict[str, Any]] = [
        {"model": "arcface_r50"},
        {"graph_sha256": "0" * 64},
        {"tensorrt_version": "10.16.1.12"},
        {"sm": "89"},
        {"precision": "int8"},
        {"opt_batch_size": 16},
        {"max_batch_size": 64},
        {"max_drift_cosine": 0.0005},
        {"settings": {**KEY.settings, "workspace_size_mb": 512}},
    ]
    assert len({replace(KEY, **change).key for change in changes} | {KEY.key}) == len(changes) + 1
