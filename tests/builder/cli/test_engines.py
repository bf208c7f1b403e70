from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from arcface_builder.cli.app import main
from arcface_builder.store.plan_store import open_store
from arcface_client.models.plan_manifest import PlanKey
from support.engines import manifest, plan, plan_file, plan_key
from support.proxy import Proxy
from support.s3_server import S3Server

KEY = plan_key()
SM90 = plan_key(sm="90", settings={"platform": "linux-x86_64", "gpu": "NVIDIA H200"})


def put(of: PlanKey, content: bytes | None = None, *, bucket: str | None = None, **changes: str) -> None:
    store = open_store(bucket)
    with store.local.staging() as folder:
        store.put(plan_file(folder, content), manifest(content, of, **changes))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with plans for two architectures."""
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))
    put(KEY)
    put(SM90, created="2026-01-01T00:00:00+00:00")
    return tmp_path / "cache"


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENGINE_S3_BUCKET", "plans")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    return s3


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(["engines", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_a_list_says_which_plans_there_are_and_where(
    bucket: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push", "--sm", "90")

    assert sorted(said(capsys, "list")) == sorted(
        [
            f"{KEY.key}  linux-x86_64  0.0 MB  2026-11-22  cache",
            f"{SM90.key}  linux-x86_64, NVIDIA H200  0.0 MB  2026-01-01  cache and bucket",
        ]
    )
    (record,) = json.loads("".join(said(capsys, "list", "--json", "--sm", "90")))
    assert record["places"] == ["cache", "bucket"]
    assert record["identity"]["onnx_sha256"] == KEY.onnx_sha256


@pytest.mark.parametrize("verb", [["list"], ["verify"], ["prune", "--keep", "2"]], ids=" ".join)
def test_an_empty_cache_is_said_to_be_empty(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["engines", *verb, "--cache-dir", str(tmp_path / "empty")]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"The cache {tmp_path}/empty has no plan.\n")


@pytest.mark.parametrize(
    ("verb", "code"),
    [
        (["list"], 0),
        (["prune", "--keep", "0"], 0),
        (["verify", "--remote"], 1),
        (["pull", "--json"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_filter_that_matches_nothing_is_a_failure_of_what_has_work_to_do(
    verb: list[str], code: int, bucket: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push")
    capsys.readouterr()

    assert main(["engines", *verb, "--sm", "89"]) == code

    printed = capsys.readouterr()
    assert printed.err.endswith(" has no such plan.\n")
    assert ("bucket 'plans'" in printed.err) == (verb != ["prune", "--keep", "0"])
    assert printed.out.splitlines() == (["[]"] if "--json" in verb else [])


def test_a_plan_that_one_machine_pushes_is_pulled_by_another(
    bucket: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = said(capsys, "push")
    other = str(tmp_path / "other")
    pulled = said(capsys, "pull", "--cache-dir", other, "--precision", "fp16", "--sm", "86")

    assert sorted(pushed) == sorted([f"pushed: {KEY.key}", f"pushed: {SM90.key}"])
    assert pulled == [f"pulled: {KEY.key}"]
    assert (tmp_path / "other" / KEY.key).read_bytes() == plan()
    assert said(capsys, "push", "--sm", "86") == [f"already there: {KEY.key}"]
    assert said(capsys, "push", "--sm", "86", "--overwrite") == [f"pushed: {KEY.key}"]
    assert said(capsys, "pull", "--sm", "86") == [f"already there: {KEY.key}"]


@pytest.mark.parametrize("as_json", [False, True], ids=["lines", "json"])
def test_what_was_done_before_a_failure_is_printed(
    as_json: bool,
    bucket: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = sorted((plan_key(sm=sm) for sm in ("75", "89")), key=lambda key: key.key)
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "big"))
    put(first, bucket="plans")
    put(second, plan(300_000), bucket="plans")
    arguments = ["--cache-dir", str(tmp_path / "other"), *["--json"] * as_json]

    with Proxy(f"127.0.0.1:{bucket.port}") as wire:
        wire.cut_after_bytes = 200_000
        lines = said(capsys, "pull", "--endpoint-url", f"http://{wire.url}", *arguments, code=1)

    if as_json:
        assert json.loads("".join(lines)) == [{"key": first.key, "result": "pulled", "problem": None}]
    else:
        assert lines == [f"pulled: {first.key}"]


def test_verify_finds_every_damaged_plan_and_leaves_it(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(said(capsys, "verify")) == sorted([f"whole: {KEY.key}", f"whole: {SM90.key}"])

    (cache / KEY.key).write_bytes(plan(seed=1))
    (cache / f"{SM90.key}.json").write_text("{}")

    outcomes = json.loads("".join(said(capsys, "verify", "--json", code=1)))
    assert {outcome["key"]: outcome["result"] for outcome in outcomes} == {
        KEY.key: "damaged",
        SM90.key: "damaged",
    }
    assert any("has SHA-256" in outcome["problem"] for outcome in outcomes)
    assert (cache / KEY.key).exists()


def test_prune_removes_what_dry_run_announced(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = ["--tensorrt-version", "10.16.1.11", "--sm", "90"]
    assert said(capsys, "prune", *rule, "--dry-run") == [f"would be removed: {SM90.key}"]
    assert (cache / SM90.key).exists()
    assert said(capsys, "prune", *rule) == [f"removed: {SM90.key}"]
    assert not (cache / SM90.key).exists()
    assert len(said(capsys, "list")) == 1


def test_prune_touches_the_bucket_only_when_told_to(
    bucket: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push")
    said(capsys, "prune", "--keep", "0")
    assert len(bucket.keys("plans")) == 4
    said(capsys, "prune", "--keep", "0", "--remote")
    assert bucket.keys("plans") == []


def test_without_a_bucket_the_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "verify", "--remote"]) == 1
    errors = capsys.readouterr().err
    assert errors == (
        "arcface-builder: There is no bucket; name one with --bucket or tensorrt.engine_s3_bucket of the "
        "settings.\n"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        ["prune"],
        ["prune", "--keep", "-1"],
        ["prune", "--older-than-days", "inf"],
        ["prune", "--keep", "1", "--cache-dir", ""],
        ["pull", "--precision", "fp99"],
        ["verify", "--sm", "sm86"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(wrong: list[str]) -> None:
    assert main(["engines", *wrong]) == 2


def test_a_bucket_that_fails_is_one_line(bucket: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("list", "pull", "push"):
        capsys.readouterr()
        assert main(["engines", verb, "--bucket", "nowhere"]) == 1
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1].startswith("arcface-builder: S3, bucket 'nowhere', key engines/")
        assert "NoSuchBucket" in errors[-1]


def test_without_boto3_the_error_says_how_to_install_it_and_the_cache_works(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENGINE_S3_BUCKET", "plans")
    monkeypatch.setitem(sys.modules, "boto3", None)

    assert main(["engines", "list"]) == 1
    assert "pip install 'arcface-triton[s3]'" in capsys.readouterr().err
    assert len(said(capsys, "verify")) == 2
    assert len(said(capsys, "prune", "--keep", "0")) == 2
    shutil.rmtree(cache)
