"""``arcface-client`` as a person calls it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.cli.app import main
from arcface_client.contract import Crops, Embeddings
from arcface_client.models.files import sha256_of
from arcface_client.models.normalisation import UNIT
from arcface_server import LocalTriton
from support.exports import save_for_insightface
from support.image_files import save_crops
from support.processes import open_files, wait_until
from support.tiny import write_tiny_repository

MODEL = ["--model", "tiny_onnx"]


@pytest.fixture
def folder(tmp_path: Path, crops: Crops) -> Path:
    return save_crops(tmp_path / "crops", crops[:40])


def test_embed_writes_one_row_for_each_crop_and_which_model_made_them(
    triton: LocalTriton,
    folder: Path,
    expected: Embeddings,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = folder.parent / "out.npz"
    caplog.set_level("INFO")
    assert main(["embed", str(folder), "--output", str(output), "--url", triton.grpc_url, *MODEL]) == 0
    assert caplog.messages == [f"tiny_onnx:2 at {triton.grpc_url} serves"]
    printed = capsys.readouterr()
    assert printed.out == f"{output}: 40 embeddings by tiny_onnx:2\n"
    assert "tiny_onnx:2 could not be checked: no manifest of it is in" in printed.err
    with np.load(output) as archive:
        np.testing.assert_allclose(archive["embeddings"], expected[:40], atol=1e-6)
        assert archive["paths"].tolist() == [str(folder / f"{index:03}.png") for index in range(40)]
        texts = [str(archive[name]) for name in ("model", "version", "source_sha256")]
    assert texts == ["tiny_onnx", "2", ""]


def test_embed_reports_and_skips_files_that_are_not_crops(
    triton: LocalTriton, folder: Path, expected: Embeddings, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "001.png").unlink()
    (folder / "001.png").symlink_to("nowhere")
    (folder / "002.png").unlink()
    Image.new("RGB", (64, 64)).save(folder / "002.png")
    (folder / "list.txt").touch()
    output = folder.parent / "out.npz"
    url = ["--url", triton.grpc_url]
    assert main(["embed", str(folder), "--output", str(output), "--json", *url, *MODEL]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "output": str(output),
        "embedded": 38,
        "skipped": [str(folder / "001.png"), str(folder / "002.png")],
        "model": "tiny_onnx",
        "version": 2,
        "source_sha256": None,
    }
    _unchecked, progress, broken, small = printed.err.splitlines()
    assert re.fullmatch(r"embed: 40( of 40)? crops", progress)
    assert broken.startswith(f"skipped: {folder}/001.png cannot be read as an image")
    assert small.startswith(f"skipped: {folder}/002.png is 64x64")
    assert small.endswith("scale it with --resize.")
    with np.load(output) as archive:
        np.testing.assert_allclose(archive["embeddings"][1:], expected[3:40], atol=1e-6)


def test_embed_refuses_a_served_model_that_is_not_the_one_of_its_manifest(
    models: Path, built: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, config = tmp_path / "out.npz", tmp_path / "embedding.yaml"
    config.write_text(f"embedding: {{model_repository: {models}}}")
    flags = ["--output", str(output), "--config", str(config), "--model", "small_onnx:1"]
    with LocalTriton(models, stop_timeout_s=1) as server:
        assert main(["embed", str(folder), "--url", server.grpc_url, *flags]) == 0
    sha256 = sha256_of(built / "source-0.onnx")
    assert f"by small_onnx:1 (source SHA-256 {sha256:.12}...)" in capsys.readouterr().out
    with np.load(output) as archive:
        assert (str(archive["version"]), str(archive["source_sha256"])) == ("1", sha256)

    output.unlink()
    build(OnnxFile(save_for_insightface(tmp_path, seed=5)), name="small", repository=tmp_path / "other")
    shutil.copy(tmp_path / "other/small_onnx/1/model.onnx", models / "small_onnx/1/model.onnx")
    with LocalTriton(models, stop_timeout_s=1) as server:
        assert main(["embed", str(folder), "--url", server.grpc_url, *flags]) == 1
    told = r"small_onnx:1 at \S+: its golden embeddings drift 1\.\d+ from the reference \(manifest\)"
    assert re.search(told, capsys.readouterr().err)
    assert not output.exists()


def test_embed_without_images_or_server_leaves_what_was_there(
    triton: LocalTriton, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.npz"
    output.write_bytes(b"good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "fake.jpg").write_bytes(b"no image")
    for path, url, message in (
        (tmp_path / "empty", "127.0.0.1:9", "There is no image in"),
        (folder, "127.0.0.1:9", "No Triton server is ready at 127.0.0.1:9"),
        (tmp_path / "fake.jpg", triton.grpc_url, "None of 1 files is a face crop"),
    ):
        assert main(["embed", str(path), "--output", str(output), "--url", url, *MODEL]) == 1
        assert message in capsys.readouterr().err
        assert output.read_bytes() == b"good"


def test_status_shows_models_and_reasons(
    triton: LocalTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--url", triton.grpc_url]) == 0
    text = capsys.readouterr().out
    assert f"at {triton.grpc_url}: ready" in text
    assert "UNAVAILABLE" in text
    assert text.count("\n") == 8  # the server, the heading, and a line for each version, without tracebacks
    config = tmp_path / "embedding.yaml"
    config.write_text(f"embedding: {{backend: triton, model: tiny, model_repository: {tmp_path}}}")
    assert main(["status", "--url", triton.grpc_url, "--config", str(config), "--json"]) == 0
    (server,) = json.loads(capsys.readouterr().out)["servers"]
    models, about = server["models"], {"role": None, "pixels": None}
    assert {"name": "tiny_onnx", "version": 2, "state": "READY", "reason": ""} | about in models


def test_status_shows_what_a_model_does_to_the_pixels_and_what_of_it_was_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, models = save_for_insightface(tmp_path), tmp_path / "models"
    build(OnnxFile(source), name="small", repository=models)
    build(OnnxFile(source, UNIT, color="bgr"), name="small", repository=models)
    with LocalTriton(models, stop_timeout_s=1) as server:
        config = tmp_path / "embedding.yaml"
        config.write_text(f"embedding: {{model_repository: {models}}}")
        assert main(["status", "--url", server.grpc_url, "--config", str(config)]) == 0
        text = capsys.readouterr().out
    assert re.search(r"small_onnx +1 +READY +RGB, \(x - 127\.5\) / 127\.5 \(.* assumed\)", text)
    assert re.search(r"small_onnx +2 +READY +BGR, x / 255 *$", text, re.M)


def test_a_proxy_that_grpc_uses_is_named(
    triton: LocalTriton, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert main(["status", "--url", triton.grpc_url]) == 1
    assert (
        "gRPC goes through the proxy of http_proxy, unless no_proxy names the host" in capsys.readouterr().err
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert main(["status", "--url", triton.grpc_url]) == 0


def test_status_asks_every_server(triton: LocalTriton, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", f"127.0.0.1:9,{triton.grpc_url}"]) == 0
    printed = capsys.readouterr()
    assert f"at {triton.grpc_url}: ready" in printed.out
    assert printed.err.startswith("arcface-client: No Triton server is ready at 127.0.0.1:9")


def test_status_shows_a_server_without_a_ready_model_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_tiny_repository(tmp_path) / "1" / "model.onnx").write_bytes(b"no model")
    with LocalTriton(tmp_path, stop_timeout_s=1) as server:
        assert main(["status", "--url", server.grpc_url]) == 1
    assert "tiny_onnx" in capsys.readouterr().out


def test_status_as_json_says_which_model_embeds_how_fast_and_why_not_another(
    triton: LocalTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "embedding.yaml"
    config.write_text(f"embedding: {{model: tiny, model_repository: {tmp_path}}}")
    arguments = ["--url", triton.grpc_url, "--config", str(config), "--json"]

    assert main(["status", "--backend", "triton", *arguments]) == 0
    embedder = json.loads(capsys.readouterr().out)["embedder"]
    assert (embedder["backend"], embedder["model"], embedder["problem"]) == ("triton", "tiny_onnx", None)
    assert embedder["throughput_fps"] > 0
    assert embedder["vram_mb"] is None
    assert embedder["validation"] == {
        "drift_vs_reference": None,
        "reference": "itself",
        "regression_test": None,
    }
    assert [candidate["state"] for candidate in embedder["candidates"]][:1] == ["serving"]

    assert main(["status", "--backend", "tensorrt", *arguments]) == 1
    embedder = json.loads(capsys.readouterr().out)["embedder"]
    assert (embedder["backend"], embedder["latency_ms"]) == ("tensorrt", None)
    assert "There is no tiny_onnx in" in embedder["problem"]
    assert [candidate["state"] for candidate in embedder["candidates"]] == ["refused", "refused"]


def test_status_as_json_describes_the_embedder_without_a_server_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "embedding.yaml"
    config.write_text(f"embedding: {{backend: onnxruntime, model_repository: {tmp_path}}}")
    assert main(["status", "--url", "127.0.0.1:9", "--config", str(config), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (server,) = report["servers"]
    assert (server["version"], server["ready"], server["models"]) == (None, False, [])
    assert server["problem"].startswith("No Triton server is ready at 127.0.0.1:9")
    assert "There is no arcface_r100_onnx in" in report["embedder"]["problem"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["embed"],
        ["embed", "x"],
        ["embed", "x", "--version", "new", "--output", "x.npz"],
        ["embed", "x", "--output", "embeddings.csv"],
        ["embed", "x", "--output", "embeddings.npz", "--retry-failed"],
        ["embed", "x", "--output", "gallery/", "--backend", "onnxruntime", "--version", "2"],
        ["embed", "x", "--model", "a_onnx:1", "--version", "2", "--output", "x.npz"],
        ["status", "--backend", "triton"],
        ["benchmark", "a", "--plot", "speed.gif"],
        ["compare", "a"],
        ["compare", "a", "b", "--color", "bgr"],
        ["compare", "a", "--reference", "b", "--normalisation", "none"],
        ["compare", "a", "b", "--n-samples", "1"],
        ["compare", "a", "b", "--batch-size", "0"],
        ["compare", "a", "b", "--threshold", "1.5"],
        ["compare", "a", "b", "--max-drift-cosine", "-1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert main(arguments) == 2


@pytest.mark.faults
def test_ctrl_c_leaves_nothing(triton: LocalTriton, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arcface_client", "embed", str(folder)]
    flags = ["--output", str(tmp_path / "out.npz"), "--url", triton.grpc_url, "--model", "slow_onnx"]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    # It has begun to write: before that, Ctrl-C could meet a Python that is still starting.
    wait_until(lambda: any(path.startswith(str(tmp_path)) for path in open_files(process.pid)), timeout_s=60)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops"]
