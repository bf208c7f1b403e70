from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arcface_builder.cli.app import main
from arcface_builder.store import LocalStore, PlanIdentity, PlanManifest, StoredPlan, open_store
from arcface_builder.store.s3 import S3Store
from support import engines
from support.engines import plan
from support.s3_server import BadWire, S3Server


def identity(*, sm: str, **settings: str) -> PlanIdentity:
    return engines.identity(sm=sm, settings={"platform": "linux-x86_64", **settings})


IDENTITY = identity(sm="86")
SM90 = identity(sm="90", gpu="NVIDIA H200")


def manifest(content: bytes | None = None, of: PlanIdentity = IDENTITY, **changes: Any) -> PlanManifest:
    return engines.manifest(content, of, **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with plans for two architectures."""
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))
    store = open_store()
    store.put(plan(), manifest())
    store.put(plan(), manifest(of=SM90, created="2026-01-01T00:00:00+00:00"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENGINE_S3_BUCKET", "plans")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    return s3


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    assert main(["engines", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_a_list_says_what_there_is_and_where(bucket: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "push", "--sm", "90"]) == 0
    capsys.readouterr()

    assert sorted(said(capsys, "list")) == sorted(
        [
            f"{IDENTITY.key}  linux-x86_64  0.0 MB  2026-11-22  cache",
            f"{SM90.key}  linux-x86_64, NVIDIA H200  0.0 MB  2026-01-01  cache and bucket",
        ]
    )
    (record,) = json.loads("".join(said(capsys, "list", "--json", "--sm", "90")))
    assert record["places"] == ["cache", "bucket"]
    assert record["identity"]["onnx_sha256"] == IDENTITY.onnx_sha256


def test_what_two_machines_built_of_one_plan_is_listed_twice(
    bucket: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = plan(seed=1)
    open_store(cache_dir=tmp_path / "other", bucket="plans").put(theirs, manifest(theirs))

    records = json.loads("".join(said(capsys, "list", "--json", "--sm", "86")))

    places = {record["plan_sha256"]: record["places"] for record in records}
    assert places == {manifest().plan_sha256: ["cache"], manifest(theirs).plan_sha256: ["bucket"]}
    assert len(said(capsys, "list", "--sm", "86")) == 2


def test_a_plan_that_is_gone_when_it_is_pulled_is_a_failure(
    bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push", "--sm", "86")
    monkeypatch.setattr(S3Store, "find", lambda self, identity: None)  # somebody has just pruned it

    pulled = said(capsys, "pull", "--cache-dir", str(tmp_path / "other"), code=1)

    assert pulled == [f"missing: {IDENTITY.key}"]


@pytest.mark.parametrize("verb", [["list"], ["verify"], ["prune", "--keep", "2"]], ids=" ".join)
def test_where_there_is_no_plan_that_is_said(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engines", *verb, "--cache-dir", str(tmp_path / "empty")]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"There is no plan in the local cache ({tmp_path}/empty).\n")


@pytest.mark.parametrize(
    ("verb", "code", "place"),
    [
        (["list"], 0, "local cache ({cache}) or the bucket 'plans'"),
        (["prune", "--keep", "0"], 0, "local cache ({cache})"),
        (["verify"], 1, "local cache ({cache})"),
        (["verify", "--remote"], 1, "bucket 'plans'"),
        (["push"], 1, "local cache ({cache})"),
        (["pull"], 1, "bucket 'plans'"),
        (["pull", "--json"], 1, "bucket 'plans'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_where_no_plan_is_such_a_one_that_is_said_and_is_a_failure_of_what_has_work_to_do(
    verb: list[str],
    code: int,
    place: str,
    bucket: S3Server,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said(capsys, "push")

    assert main(["engines", *verb, "--sm", "89"]) == code

    printed = capsys.readouterr()
    assert printed.err == f"There is no such plan in the {place.format(cache=cache)}.\n"
    assert printed.out == ("[]\n" if "--json" in verb else "")


def test_what_one_machine_pushes_another_pulls(
    bucket: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = said(capsys, "push")
    other = str(tmp_path / "other")
    pulled = said(capsys, "pull", "--cache-dir", other, "--precision", "fp16", "--sm", "86")

    assert sorted(pushed) == sorted([f"pushed: {IDENTITY.key}", f"pushed: {SM90.key}"])
    assert pulled == [f"pulled: {IDENTITY.key}"]
    assert (tmp_path / "other" / IDENTITY.key).read_bytes() == plan()
    assert said(capsys, "push", "--sm", "86") == [f"already there: {IDENTITY.key}"]
    assert said(capsys, "push", "--sm", "86", "--overwrite") == [f"pushed: {IDENTITY.key}"]
    assert said(capsys, "pull", "--sm", "86") == [f"already there: {IDENTITY.key}"]


@pytest.mark.parametrize("as_json", [False, True], ids=["lines", "json"])
def test_what_was_done_before_it_failed_is_told(
    as_json: bool, bucket: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((identity(sm=sm) for sm in ("75", "89")), key=lambda identity: identity.key)
    for of, content in ((first, plan()), (second, plan(300_000))):
        open_store(cache_dir=tmp_path / "big", bucket="plans").put(content, manifest(content, of=of))
    arguments = ["--cache-dir", str(tmp_path / "other"), *["--json"] * as_json]

    with BadWire(bucket.port) as wire:
        wire.cut_after_bytes = 200_000
        lines = said(capsys, "pull", "--endpoint-url", wire.url, *arguments, code=1)

    if as_json:
        assert json.loads("".join(lines)) == [{"key": first.key, "result": "pulled", "problem": None}]
    else:
        assert lines == [f"pulled: {first.key}"]


def test_plans_of_a_bucket_are_verified_without_room_for_temporary_files(
    bucket: S3Server, tmp_path: Path
) -> None:
    content = plan(3_000_000)
    open_store(bucket="plans").put(content, manifest(content, of=identity(sm="89")))
    small = tmp_path / "small"
    small.mkdir()
    in_a_small_folder = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1m none {small}"
    if subprocess.run([*in_a_small_folder, mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system in a namespace")

    verify = shlex.join([sys.executable, "-m", "arcface_builder", "engines", "verify", "--remote"])
    done = subprocess.run(
        [*in_a_small_folder, f"{mount}; TMPDIR={small} {verify}"], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("whole: ")


def test_the_settings_name_the_bucket(
    bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ARCFACE_TENSORRT_ENGINE_S3_BUCKET")
    config = tmp_path / "trt.yaml"
    config.write_text("tensorrt: {engine_s3_bucket: plans}")

    assert len(said(capsys, "push", "--config", str(config))) == 2

    assert any(key.endswith("sm90.plan") for key in bucket.keys("plans"))


def test_verify_finds_every_damaged_plan(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(said(capsys, "verify")) == sorted([f"whole: {IDENTITY.key}", f"whole: {SM90.key}"])

    (cache / IDENTITY.key).write_bytes(plan(seed=1))
    (cache / f"{SM90.key}.json").write_text("{}")

    outcomes = json.loads("".join(said(capsys, "verify", "--json", code=1)))
    assert {outcome["key"]: outcome["result"] for outcome in outcomes} == {
        IDENTITY.key: "damaged",
        SM90.key: "damaged",
    }
    assert any("has SHA-256" in outcome["problem"] for outcome in outcomes)
    assert (cache / IDENTITY.key).exists()


def test_a_damaged_plan_that_nobody_asked_for_fails_nothing(
    bucket: S3Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push")
    (cache / f"{SM90.key}.json").write_text("{}")
    bucket.client.put_object(Bucket="plans", Key=f"{SM90.key}.json", Body=b"{}")

    for verb in (["verify"], ["verify", "--remote"], ["push"], ["pull"]):
        for wanted in (["--sm", "86"], ["--model", "arcface_r50"]):
            lines = said(capsys, *verb, *wanted, code=int("--model" in wanted))
            assert len(lines) == int("--sm" in wanted)
        (line,) = said(capsys, *verb, "--sm", "90", "--tensorrt-version", "10.16.1.11", code=1)
        assert line.startswith("damaged: ")


def test_verify_beside_prune_fails_for_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = LocalStore.check

    def check_late(self: LocalStore, listed: PlanManifest) -> StoredPlan:
        if listed.identity == SM90:
            LocalStore(self.root).remove(listed)
        return check(self, listed)

    monkeypatch.setattr(LocalStore, "check", check_late)

    assert sorted(said(capsys, "verify")) == [
        f"removed or replaced meanwhile: {SM90.key}",
        f"whole: {IDENTITY.key}",
    ]


def test_a_plan_that_goes_before_it_is_pushed_is_a_failure(
    bucket: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = LocalStore.check

    def check_late(self: LocalStore, listed: PlanManifest) -> StoredPlan:
        LocalStore(self.root).remove(listed)
        return check(self, listed)

    monkeypatch.setattr(LocalStore, "check", check_late)

    (line,) = said(capsys, "push", "--sm", "86", code=1)
    assert line.startswith("missing: ")
    assert line.endswith("was removed or replaced while it was looked at; look again.")
    assert bucket.keys("plans") == []


def test_verify_downloads_and_checks_the_bucket(bucket: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "push")
    assert len(said(capsys, "verify", "--remote")) == 2
    (key,) = (key for key in bucket.keys("plans") if "sm90.plan" in key and not key.endswith(".json"))
    bucket.client.put_object(Bucket="plans", Key=key, Body=plan(seed=1))

    lines = said(capsys, "verify", "--remote", code=1)

    assert sum(line.startswith("damaged: ") for line in lines) == 1


def test_prune_removes_what_is_old_after_it_was_asked_to_only_say_so(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = ["--tensorrt-version", "10.16.1.11", "--sm", "90"]
    assert said(capsys, "prune", *rule, "--dry-run") == [f"would be removed: {SM90.key}"]
    assert (cache / SM90.key).exists()
    assert said(capsys, "prune", *rule) == [f"removed: {SM90.key}"]
    assert not (cache / SM90.key).exists()
    assert said(capsys, "list") == [f"{IDENTITY.key}  linux-x86_64  0.0 MB  2026-11-22  cache"]


def test_prune_touches_the_bucket_only_when_told_to(
    bucket: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push")
    said(capsys, "prune", "--keep", "0")
    assert len(bucket.keys("plans")) == 4
    said(capsys, "prune", "--keep", "0", "--remote")
    assert bucket.keys("plans") == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["pull"], "There is no bucket; name one with --bucket or tensorrt.engine_s3_bucket of the"),
        (["push"], "There is no bucket"),
        (["verify", "--remote"], "There is no bucket"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engines", *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"arcface-builder: {problem}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Nothing says what may go; expected --keep"),
        (["--keep", "-1"], "Cannot prune by -1; expected 0 to 1,000,000."),
        (["--older-than-days", "nan"], "Cannot prune by nan; expected 0 to"),
        (["--older-than-days", "inf"], "Cannot prune by inf; expected 0 to"),
        (["--older-than-days", "1e18"], "Cannot prune by 1e+18; expected 0 to"),
        (["--keep", "1", "--cache-dir", ""], "argument --cache-dir: an empty path; give a name"),
    ],
)
def test_to_prune_by_nothing_or_by_odd_numbers_is_wrong_usage(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["engines", "prune", *arguments])

    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_what_cannot_be_read_is_damaged_and_stops_nothing_else(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = cache / f"{IDENTITY.key}.json"
    record.unlink()
    record.mkdir()

    assert said(capsys, "verify", "--sm", "90") == [f"whole: {SM90.key}"]
    (line,) = said(capsys, "verify", "--sm", "86", code=1)
    assert line == f"damaged: The manifest {record} cannot be read: Is a directory."


def test_a_cache_that_is_no_folder_is_not_called_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    assert main(["engines", "list", "--cache-dir", str(tmp_path / "file")]) == 1
    assert f"Cannot read the cache {tmp_path}/file ([Errno 20] Not a dir" in capsys.readouterr().err


def test_what_another_version_of_this_project_stored_is_left_alone_and_fails_nothing(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = cache / f"{IDENTITY.key}.json"
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 2'))

    lines = said(capsys, "verify")

    assert f"whole: {SM90.key}" in lines
    assert any(line.startswith("left alone: ") and "schema_version 2" in line for line in lines)


def test_what_another_version_stored_is_left_alone_by_a_pull_which_goes_on(
    bucket: S3Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push")
    record = cache / f"{IDENTITY.key}.json"
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    shutil.rmtree((cache / SM90.key).parent)

    lines = said(capsys, "pull")

    assert f"pulled: {SM90.key}" in lines
    assert any(line.startswith("left alone: ") and "schema_version 2" in line for line in lines)


@pytest.mark.parametrize("cut_off", [False, True], ids=["missing", "cut off"])
def test_a_push_replaces_a_plan_that_the_bucket_has_lost(
    cut_off: bool, bucket: S3Server, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said(capsys, "push")
    (lost,) = (key for key in bucket.keys("plans") if key.endswith("sm86.plan"))
    if cut_off:
        bucket.client.put_object(Bucket="plans", Key=lost, Body=b"x")
    else:
        bucket.client.delete_object(Bucket="plans", Key=lost)

    assert said(capsys, "push", "--sm", "86") == [f"pushed: {IDENTITY.key}"]

    assert f"{IDENTITY.key} in the bucket is missing or cut off; replacing it" in caplog.messages
    assert len(said(capsys, "verify", "--remote")) == 2


def test_what_another_version_pushed_is_left_alone_by_a_push(
    bucket: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push", "--sm", "86")
    key = f"{IDENTITY.key}.json"
    record = bucket.client.get_object(Bucket="plans", Key=key)["Body"].read()
    other = record.replace(b'"schema_version": 1', b'"schema_version": 2')
    bucket.client.put_object(Bucket="plans", Key=key, Body=other)

    (line,) = said(capsys, "push", "--sm", "86")

    assert line.startswith("left alone: ")


def test_a_manifest_of_a_plan_of_any_number_of_bytes_is_damaged(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = cache / f"{IDENTITY.key}.json"
    size = manifest().plan_bytes
    record.write_text(record.read_text().replace(f'"plan_bytes": {size}', f'"plan_bytes": 1{"0" * 400}'))

    assert said(capsys, "list", "--sm", "86") == []
    assert "plan_bytes is 1" in said(capsys, "verify", "--sm", "86", code=1)[0]


def test_an_architecture_may_be_named_as_a_compute_capability(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "verify", "--sm", "8.6") == [f"whole: {IDENTITY.key}"]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("8.66", "Compute capability '8.66' cannot be that of a plan; expected major.minor, as 8.6."),
        ("sm86", "SM 'sm86' cannot be that of a plan; expected digits alone, as 86."),
    ],
)
def test_what_is_no_architecture_is_wrong_usage(
    wrong: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["engines", "verify", "--sm", wrong])
    assert f"argument --sm: {problem}\n" in capsys.readouterr().err


def test_a_bucket_that_fails_is_one_line(bucket: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("list", "pull", "push"):
        assert main(["engines", verb, "--bucket", "nowhere"]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("arcface-builder: There is no bucket 'nowhere'; ")
        assert errors.count("\n") == 1


def test_without_boto3_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert main(["engines", "list", "--bucket", "plans"]) == 1
    assert "pip install 'arcface-triton[s3]'" in capsys.readouterr().err


def test_what_is_done_in_the_cache_alone_needs_no_boto3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENGINE_S3_BUCKET", "plans")
    monkeypatch.setitem(sys.modules, "boto3", None)

    assert len(said(capsys, "verify")) == 2
    assert len(said(capsys, "prune", "--keep", "0")) == 2
    assert main(["engines", "verify", "--remote"]) == 1


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["engines", "prune", "--keep", "some"])
    with pytest.raises(SystemExit, match="2"):
        main(["engines", "pull", "--precision", "fp99"])
