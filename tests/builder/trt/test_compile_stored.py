"""Plans that are stored already, some of them not good enough, where one is asked for."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.compile import compile_plan
from arcface_builder.errors import CacheError, CompileError, PlanDamagedError, RepositoryError
from arcface_builder.fleet import assemble
from arcface_builder.graph.precision import typed_graph
from arcface_builder.plan_request import PlanRequest
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.published import recorded_plan
from arcface_builder.store import PlanManifest, PlanStore, describe_plan, open_store
from arcface_builder.store.local import LocalStore
from arcface_builder.trt.options import BuildOptions
from support.absent_gpu import AbsentGpu
from support.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("few_crops")


@pytest.fixture
def coarse(gpu: AbsentGpu) -> AbsentGpu:
    """A GPU whose fp16 is no better than int8."""
    return replace(gpu, graph=typed_graph(gpu.graph, "int8", calibration=faces.noise(8)))


def lenient(request: PlanRequest) -> PlanRequest:
    return replace(request, max_drift_cosine=0.05)


def twice_as_strict_as(manifest: PlanManifest, request: PlanRequest) -> PlanRequest:
    return replace(request, max_drift_cosine=manifest.parity.largest_drift_cosine / 2)


@pytest.fixture
def lenient_here(
    request_: PlanRequest,
    gpu: AbsentGpu,
    coarse: AbsentGpu,
    tmp_path: Path,
    elsewhere: ModelRepository,
    s3: S3Server,
) -> tuple[PlanStore, PlanRequest, PlanManifest]:
    """A store whose cache has a lenient plan and whose bucket a good one; a request for that; and that."""
    bad = compile_plan(lenient(request_), coarse, PlanStore(LocalStore(tmp_path / "a")), elsewhere).manifest
    strict = twice_as_strict_as(bad, request_)
    other = open_store("plans", endpoint_url=s3.url, cache_dir=tmp_path / "b")
    good = compile_plan(strict, gpu, other, ModelRepository(tmp_path / "third")).manifest
    return open_store("plans", endpoint_url=s3.url, cache_dir=tmp_path / "a"), strict, good


def test_where_the_cache_has_a_lenient_plan_the_buckets_good_one_is_taken(
    lenient_here: tuple[PlanStore, PlanRequest, PlanManifest], gpu: AbsentGpu, repository: ModelRepository
) -> None:
    store, strict, good = lenient_here

    again = compile_plan(strict, gpu, store, repository)

    assert again.from_store
    assert again.manifest == good
    assert list(store.local.manifests()) == [good]
    assert store.remote is not None
    assert list(store.remote.manifests()) == [good]


def test_the_old_plan_stays_where_the_new_one_cannot_be_stored(
    request_: PlanRequest,
    gpu: AbsentGpu,
    coarse: AbsentGpu,
    store: PlanStore,
    elsewhere: ModelRepository,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = compile_plan(lenient(request_), coarse, store, elsewhere).manifest

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("arcface_builder.store.local.flush", full)
    with pytest.raises(CacheError, match="The plan was not stored"):
        compile_plan(twice_as_strict_as(old, request_), gpu, store, repository)

    assert list(store.local.manifests()) == [old]
    assert store.local.check(old)


def test_a_refusal_is_of_the_repository_and_not_of_the_store_that_is_filled_from_it(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, tmp_path: Path, repository: ModelRepository
) -> None:
    exact, fallback = replace(gpu, runs_in="fp32"), replace(request_, fallback=True)
    first = compile_plan(fallback, exact, store, repository)
    filled = PlanStore(LocalStore(tmp_path / "filled"))

    again = compile_plan(fallback, exact, filled, repository)

    assert again.from_store
    assert again.manifest == first.manifest
    assert [manifest.refusals for manifest in filled.manifests()] == [()]


def test_a_plan_of_another_onnxruntime_is_taken_where_it_is_published(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    elsewhere: ModelRepository,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = compile_plan(request_, gpu, store, repository)
    monkeypatch.setattr(onnxruntime, "__version__", "99.0.0")

    again = compile_plan(request_, gpu, store, repository)

    assert again.from_store
    assert again.manifest == first.manifest
    assert not compile_plan(request_, gpu, store, elsewhere).from_store  # a new version has its own


def test_a_plan_for_another_platform_is_another_plan(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    here = compile_plan(request_, gpu, store, repository).manifest.identity.settings["platform"]
    monkeypatch.setattr("platform.machine", lambda: "aarch64")

    assert not compile_plan(request_, gpu, store, elsewhere).from_store

    assert f"the nearest there has platform {here}, not linux-aarch64." in caplog.text
    arm = assemble(request_.onnx, request_.options, ["8.6"], store, ModelRepository(tmp_path / "arm"))
    assert '"linux-aarch64"' in (arm[0].path.parents[2] / "small_trt-1-sm86.manifest.json").read_text()
    x86 = assemble(
        request_.onnx, BuildOptions(), ["8.6"], store, ModelRepository(tmp_path / "x86"), platform=str(here)
    )
    assert f'"{here}"' in (x86[0].path.parents[2] / "small_trt-1-sm86.manifest.json").read_text()
    with pytest.raises(CompileError, match=r"batch 32 by TensorRT .* for win32-AMD64 .*platform linux-"):
        assemble(request_.onnx, request_.options, ["8.6"], store, repository, platform="win32-AMD64")


def test_a_published_plan_that_was_changed_is_called_damaged(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    path = compile_plan(request_, gpu, store, repository).added.path
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(PlanDamagedError, match=r"its manifest says .* Remove it, and compile again"):
        compile_plan(request_, gpu, store, repository)
    path.unlink()
    assert compile_plan(request_, gpu, store, repository).added.is_new


def test_a_plan_that_changes_between_the_store_and_the_repository_is_not_published(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_plan(request_, gpu, store, elsewhere)
    find = store.local.find

    def find_and_harm(*arguments: object) -> object:
        found = find(*arguments)  # type: ignore[arg-type]
        assert found
        found.path.write_bytes(found.path.read_bytes()[:-1] + b"?")
        return found

    monkeypatch.setattr(store.local, "find", find_and_harm)
    with pytest.raises(PlanDamagedError, match="has SHA-256"):
        compile_plan(request_, gpu, store, repository)
    assert not (repository.root / "small_trt").exists()


def test_without_space_for_every_record_there_is_none_without_its_plan(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from arcface_builder.repository import publish_plan as plans

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plans, "_place", full)
    with pytest.raises(RepositoryError, match="No space left to write a version"):
        compile_plan(request_, gpu, store, repository)

    assert not list(repository.root.glob("small_trt*"))


def test_a_plan_by_another_tensorrt_than_the_versions_others_is_refused_before_it_is_built(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_plan(request_, gpu, store, repository)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    stages: list[str] = []

    with pytest.raises(
        RepositoryError, match=r"sm89\.plan by TensorRT .* for linux-aarch64; no server loads"
    ):
        compile_plan(
            request_,
            replace(gpu, sm="89", target_sm="89"),
            store,
            repository,
            report=lambda stage, done: stages.append(stage),
        )
    assert stages == []


def test_where_two_machines_built_the_same_the_published_plan_counts(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
    tmp_path: Path,
) -> None:
    published = compile_plan(request_, gpu, store, repository).manifest
    other = PlanStore(LocalStore(tmp_path / "other"))
    compile_plan(request_, gpu, other, elsewhere)
    (theirs,) = other.local.manifests()
    assert isinstance(theirs, PlanManifest)
    path = other.local.root / theirs.identity.key
    content = path.read_bytes() + b"\0"
    other.local.remove(theirs)
    other.local.add(content, replace(theirs, **describe_plan(content)))

    (added,) = assemble(request_.onnx, request_.options, ["8.6"], other, repository)
    again = compile_plan(request_, gpu, other, repository)

    assert not added.is_new
    assert again.from_store
    assert again.manifest == published


def test_the_record_keeps_why_a_plan_is_a_fallback(
    request_: PlanRequest, gpu: AbsentGpu, store: PlanStore, repository: ModelRepository
) -> None:
    exact = replace(gpu, runs_in="fp32")
    falling = replace(request_, fallback=True)
    asked_for = replace(request_, options=BuildOptions(precision="tf32"))
    record = repository.root / "small_trt-1-sm86.manifest.json"

    first = compile_plan(falling, exact, store, repository).manifest
    for request, refused in ((asked_for, 0), (falling, 1)):
        compiled = compile_plan(request, exact, store, repository)
        assert (compiled.manifest, len(compiled.refusals)) == (first, refused)
        assert record.read_text() == first.to_json()
    (refusal,) = first.refusals
    assert refusal.startswith("fp16 was refused")


def test_a_fleet_takes_the_buckets_good_plan_where_the_cache_has_a_lenient_one(
    lenient_here: tuple[PlanStore, PlanRequest, PlanManifest], repository: ModelRepository
) -> None:
    store, strict, good = lenient_here

    (added,) = assemble(
        strict.onnx, strict.options, ["8.6"], store, repository, max_drift_cosine=strict.max_drift_cosine
    )

    assert describe_plan(added.path)["plan_sha256"] == good.plan_sha256


def test_a_fleet_takes_the_good_record_of_bytes_that_were_judged_twice(
    lenient_here: tuple[PlanStore, PlanRequest, PlanManifest], repository: ModelRepository, tmp_path: Path
) -> None:
    store, strict, good = lenient_here
    (bad,) = [found for found in store.local.manifests() if isinstance(found, PlanManifest)]
    store.local.remove(bad)
    store.local.add((tmp_path / "b" / good.identity.key).read_bytes(), replace(good, parity=bad.parity))

    (added,) = assemble(
        strict.onnx, strict.options, ["8.6"], store, repository, max_drift_cosine=strict.max_drift_cosine
    )

    there = recorded_plan(repository, good.identity, strict.onnx.version)
    assert there is not None
    assert there.path == added.path
    assert there.manifest.parity == good.parity


@pytest.mark.parametrize("in_the_bucket", ["another plan", "the same plan, judged to be worse"])
def test_a_fleet_takes_no_other_plan_than_the_one_it_chose(
    in_the_bucket: str,
    request_: PlanRequest,
    gpu: AbsentGpu,
    coarse: AbsentGpu,
    tmp_path: Path,
    elsewhere: ModelRepository,
    repository: ModelRepository,
    s3: S3Server,
) -> None:
    b = open_store("plans", endpoint_url=s3.url, cache_dir=tmp_path / "b")
    before = PlanStore(LocalStore(tmp_path / "before")) if in_the_bucket != "another plan" else b
    bad = compile_plan(lenient(request_), coarse, before, elsewhere).manifest
    strict = twice_as_strict_as(bad, request_)
    a = PlanStore(LocalStore(tmp_path / "a"))
    good = compile_plan(strict, gpu, a, ModelRepository(tmp_path / "third")).manifest
    path = a.local.root / good.identity.key
    content = path.read_bytes()
    if before is not b:
        b.put(content, replace(good, parity=bad.parity))
    path.write_bytes(content[:-1] + b"?")

    with pytest.raises(CompileError, match=r"small-fp16-sm86\.plan is no longer as it was listed in the"):
        assemble(
            request_.onnx,
            request_.options,
            ["8.6"],
            open_store("plans", endpoint_url=s3.url, cache_dir=tmp_path / "a"),
            repository,
            max_drift_cosine=strict.max_drift_cosine,
        )
    assert not (repository.root / "small_trt").exists()
