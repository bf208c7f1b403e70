"""``arcface-client doctor``: what it finds, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcface_client.cli.app import main
from arcface_server import LocalTriton
from support.engines import manifest, plan
from support.s3_server import S3Server

Findings = list[dict[str, str]]


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Findings]:
    code = main(["doctor", "--json", *arguments])
    findings: Findings = json.loads(capsys.readouterr().out)
    return code, findings


def of(findings: Findings, check: str) -> Findings:
    return [finding for finding in findings if finding["check"].startswith(check)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without settings and models."""
    monkeypatch.chdir(tmp_path)


def test_a_deployment_that_works_has_no_error(
    triton: LocalTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    code, findings = doctor(capsys, "--url", triton.grpc_url, "--model", "tiny")
    assert code == 0
    assert not [finding for finding in findings if finding["level"] == "error"]
    for check in ("versions", "processor", "/dev/shm", "cache folder", "GPU", "model repository"):
        assert of(findings, check), check
    servers = of(findings, "server")
    assert servers[0]["found"].startswith("Triton 2.")
    (broken,) = [finding for finding in servers if "broken_onnx" in finding["found"]]
    assert broken["level"] == "warning"
    assert "could not load it" in broken["found"]
    golden = [finding["found"] for finding in of(findings, "golden check")]
    assert f"tiny_onnx:2 at {triton.grpc_url} is serving" in golden


def test_a_model_that_is_not_what_its_manifest_says_is_an_error(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL", "small")
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL_REPOSITORY", str(models))
    code, findings = doctor(capsys, "--backend", "onnxruntime")
    assert code == 0
    (golden,) = of(findings, "golden check")
    assert "is serving, drift" in golden["found"]
    with (models / "small_onnx/1/model.onnx").open("ab") as file:
        file.write(b"x")
    code, findings = doctor(capsys, "--backend", "onnxruntime")
    assert code == 1
    (repository,) = of(findings, "model repository")
    assert "its manifest says" in repository["found"]


def test_a_plan_that_is_not_its_manifests_or_of_another_tensorrt_is_named(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL", "small")
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL_REPOSITORY", str(models))
    record = models / "small_trt-1-sm86.manifest.json"
    record.write_text(manifest().to_json())
    _, findings = doctor(capsys, "--backend", "onnxruntime")
    (missing,) = of(findings, "plan")
    assert (missing["level"], missing["do"][:15]) == ("error", "do not serve it")
    file = models / "small_trt/1/arcface_r100-fp16-sm86.plan"
    file.parent.mkdir(parents=True)
    file.write_bytes(plan())
    metadata = tmp_path / "installed/tensorrt-8.5.3.1.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 8.5.3.1\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    _, findings = doctor(capsys, "--backend", "onnxruntime")
    (other,) = of(findings, "plan")
    assert other["level"] == "warning"
    assert "by TensorRT 10.16.1.11; 8.5.3.1 is installed here" in other["found"]
    assert "compile with that one" in other["do"]


def test_no_server_and_no_model_is_an_error_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = doctor(capsys, "--url", "127.0.0.1:9")
    assert code == 1
    (server,) = of(findings, "server 127.0.0.1:9")
    assert server["level"] == "error"
    assert "Check that it runs" in server["found"]
    (golden,) = of(findings, "golden check")
    assert golden["level"] == "error"
    (repository,) = of(findings, "model repository")
    assert (repository["level"], repository["do"]) == ("warning", "set embedding.model_repository")


def test_a_bucket_is_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENGINE_S3_BUCKET", "asked")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with S3Server() as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        _, findings = doctor(capsys, "--backend", "onnxruntime")
        (bucket,) = of(findings, "bucket asked")
        assert bucket["level"] == "error"
        assert "NoSuchBucket" in bucket["found"]
        s3.client.create_bucket(Bucket="asked")
        _, findings = doctor(capsys, "--backend", "onnxruntime")
        (bucket,) = of(findings, "bucket asked")
        assert bucket["level"] == "ok"
