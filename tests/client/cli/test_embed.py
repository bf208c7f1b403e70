"""``arcface-client embed`` writes galleries, and goes on where it was killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcface_client.cli.app import main
from arcface_client.contract import Crops
from arcface_client.gallery import open_gallery
from arcface_client.models.files import sha256_of
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server import LocalTriton
from support.galleries import rows_of
from support.image_files import save_crops
from support.processes import wait_until
from support.tiny import write_tiny_repository


@pytest.fixture
def folder(tmp_path: Path, crops: Crops) -> Path:
    return save_crops(tmp_path / "crops", crops[:40])


def test_a_gallery_by_a_model_in_this_process_knows_its_embedding_space(
    models: Path, built: Path, folder: Path, crops: Crops, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "001.png").write_bytes(b"")
    (folder.parent / "embedding.yaml").write_text(f"embedding: {{model_repository: {models}}}")
    output = folder.parent / "gallery.parquet"
    flags = ["--config", f"{folder.parent}/embedding.yaml", "--backend", "onnxruntime", "--model", "small"]
    assert main(["embed", str(folder), "--output", str(output), "--json", *flags]) == 1
    printed = capsys.readouterr()
    sha256 = sha256_of(built / "source-0.onnx")
    assert json.loads(printed.out) == {
        "output": str(output),
        "embedded": 39,
        "failed": 1,
        "kept": 0,
        "duplicates": 0,
        "model": "small_onnx",
        "version": 1,
        "source_sha256": sha256,
    }
    assert "skipped: 001.png cannot be read as an image: it is empty." in printed.err
    info = open_gallery(output).info
    assert (info.space.source_sha256, info.space.precision_class) == (sha256, "float")
    assert "RGB" in str(info.space.preprocessing)
    assert info.command.startswith(f"arcface-client embed {folder} --output")
    assert {"numpy", "pyarrow"} <= info.tools.keys()
    _, embeddings = open_gallery(output).load()
    expected = OnnxRuntime(models / "small_onnx/1/model.onnx").embed(crops[:40])
    np.testing.assert_allclose(embeddings, np.delete(expected, 1, axis=0), atol=1e-6)

    shutil.copy(folder / "000.png", folder / "001.png")
    assert main(["embed", str(folder), "--output", str(output), *flags]) == 1
    assert "1 failed (--retry-failed embeds them again), 40 by an earlier run" in capsys.readouterr().out
    assert main(["embed", str(folder), "--output", str(output), "--retry-failed", *flags]) == 0
    assert f"{output}: 40 embeddings by small_onnx:1 (source SHA-256 {sha256:.12}...), 39 by" in (
        capsys.readouterr().out
    )


def test_an_output_without_a_folder_is_refused_before_a_model_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.parent / "missing/gallery.parquet"
    assert main(["embed", str(folder), "--output", str(output), "--model", "none"]) == 1
    assert f"There is no folder {output.parent}" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_embedded_and_says_so(
    triton: LocalTriton, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(40, 256):
        (folder / f"{index:03}.png").hardlink_to(folder / f"{index % 40:03}.png")
    os.mkfifo(folder / "256.png")  # reading it takes until Ctrl-C
    names = [f"crops/{index:03}.png\n" for index in range(257)]
    (folder.parent / "list.txt").write_text("".join(names))
    output = folder.parent / "gallery"
    flags = ["--url", triton.grpc_url, "--model", "tiny_onnx", "--part-rows", "1", "--workers", "0"]
    arguments = ["embed", str(folder.parent / "list.txt"), "--output", str(output), "--json", *flags]

    def interrupt() -> None:
        wait_until(lambda: any(output.glob("part-*")))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(arguments) == 130
    thread.join()
    told = "interrupted; what is embedded is kept; run the same command again to go on"
    assert capsys.readouterr().err.endswith(f"arcface-client: {told}\n")
    (folder / "256.png").unlink()
    (folder / "256.png").hardlink_to(folder / "000.png")
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["embedded"], figures["kept"]) == (257, 128)


@pytest.mark.faults
def test_a_job_that_is_killed_goes_on_where_it_was(
    triton: LocalTriton, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(40, 1000):
        (folder / f"{index:03}.png").hardlink_to(folder / f"{index % 40:03}.png")
    output = folder.parent / "gallery"
    flags = ["--url", triton.grpc_url, "--model", "tiny_onnx", "--part-rows", "1", "--workers", "0"]
    arguments = ["embed", str(folder), "--output", str(output), "--json", *flags]
    job = subprocess.Popen([sys.executable, "-m", "arcface_client", *arguments], stdout=subprocess.DEVNULL)
    wait_until(lambda: any(output.glob("part-*")))
    job.kill()
    job.wait()
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["embedded"] == 1000
    assert figures["kept"] >= 128
    assert len(rows_of(output)) == 1000


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["gallery.parquet", "gallery/"])
def test_a_job_that_is_killed_ten_times_ends_as_an_undisturbed_one(
    name: str, triton: LocalTriton, tmp_path: Path, crops: Crops
) -> None:
    folder, choose = save_crops(tmp_path / "crops", crops, "{:05}.png"), random.Random(name)
    for index in range(len(crops), 12_000):
        (folder / f"{index:05}.png").hardlink_to(folder / f"{index % len(crops):05}.png")
    (folder / "00007x.png").write_bytes(b"")

    def command(output: str) -> list[str]:
        flags = ["--url", triton.grpc_url, "--model", "tiny_onnx", "--part-rows", "300", "--output", output]
        return [sys.executable, "-m", "arcface_client", "embed", str(folder), *flags]

    def compare() -> None:
        expected, found = rows_of(tmp_path / "whole.parquet"), rows_of(Path(output))
        assert found.keys() == expected.keys()
        for id, row in expected.items():
            np.testing.assert_allclose(found[id]["embedding"], row["embedding"], atol=1e-6)
            assert found[id]["error"] == row["error"]
        assert not list(tmp_path.glob("*.parts"))

    started = time.monotonic()
    assert subprocess.run(command(f"{tmp_path}/whole.parquet"), capture_output=True).returncode == 1
    took_s = time.monotonic() - started
    output, kills = f"{tmp_path}/{name}", 0
    while kills < 10:
        job = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            job.wait(choose.uniform(0.1, 0.6) * took_s)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
            kills += 1
        else:  # what was left by the kills before is done
            compare()
            shutil.rmtree(output) if Path(output).is_dir() else Path(output).unlink()
    last = subprocess.run(command(output), capture_output=True, text=True)
    assert last.returncode == 1, last.stderr
    compare()


@pytest.mark.faults
def test_a_server_that_restarts_delays_a_job_and_nothing_else(tmp_path: Path, crops: Crops) -> None:
    write_tiny_repository(tmp_path / "models")
    folder, output = tmp_path / "crops", tmp_path / "gallery"
    folder.mkdir()
    Image.fromarray(crops[0]).save(folder / "00000.png")
    for index in range(1, 8000):
        (folder / f"{index:05}.png").hardlink_to(folder / "00000.png")
    with LocalTriton(tmp_path / "models") as server:
        flags = ["--model", "tiny_onnx", "--part-rows", "1", "--url", server.grpc_url]
        command = [sys.executable, "-m", "arcface_client", "embed", str(folder), "--output", str(output)]
        job = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: any(output.glob("part-*")))
    time.sleep(5)
    with LocalTriton(tmp_path / "models", grpc_port=int(server.grpc_url.rpartition(":")[2])):
        printed, errors = job.communicate(timeout=100)
    assert job.returncode == 0, errors
    assert "8000 embeddings by tiny_onnx:1" in printed
    assert len(rows_of(output)) == 8000
