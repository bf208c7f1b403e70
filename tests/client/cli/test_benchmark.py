"""``arcface-client benchmark`` as a person calls it: on models in this process, and on a real Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arcface_client.cli.app import main
from arcface_server import LocalTriton
from report import read
from support.processes import command_line, wait_until
from support.tiny import write_tiny_repository

QUICK = ["--turns", "3", "--turn-s", "0.02"]
MANY = ["--turns", "1000", "--turn-s", "0.05"]


@pytest.fixture
def config(built: Path, models: Path) -> Path:
    """Settings of small_onnx, whose rival is InsightFace on its source."""
    file = models.parent / "embedding.yaml"
    source = built / "source-0.onnx"
    file.write_text(f"embedding: {{model: small, model_repository: {models}, source: {source}}}")
    return file


def figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for system in report["systems"] for figure in system["figures"]]


def test_ways_to_embed_take_turns_and_each_is_compared_with_the_first(
    config: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, plot = tmp_path / "speed.json", tmp_path / "speed.svg"
    rivals = ["--against", "insightface", "--against", str(models / "small_onnx/1/model.onnx")]
    arguments = ["--config", str(config), "--batch-size", "1,4", "--output", str(report), "--plot", str(plot)]
    assert main(["benchmark", "onnxruntime", *rivals, *arguments, *QUICK]) == 0

    printed = capsys.readouterr().out
    written = json.loads(report.read_text())
    assert written["complete"]
    assert written["machine"]["cores"] > 0
    ours, theirs, file = written["systems"]
    assert (ours["backend"], ours["model"], ours["version"]) == ("onnxruntime", "small_onnx", 1)
    assert ours["served_by"] == ["small_onnx:1 in this process"]
    assert theirs["served_by"] == ["source-0 in this process"]
    assert ours["drift"] is None
    assert max(theirs["drift"], file["drift"]) < 1e-6
    assert ours["validation"]["regression_test"] == "passed"
    for system in written["systems"]:
        assert system["embedding_dim"] == 512
        assert system["start_s"] > 0
        assert system["host_mb"] > 20
        assert system["vram_mb"] is None
        fastest = max(system["figures"], key=lambda figure: float(figure["throughput_fps"]))
        for field, value in (
            ("throughput_fps", fastest["throughput_fps"]),
            ("latency_ms", fastest["p50_ms"]),
        ):
            assert system[field] == value > 0
        for figure in system["figures"]:
            assert figure["p50_ms"] <= figure["p95_ms"] <= figure["p99_ms"]
            assert figure["calls"] >= len(figure["fps"]["turns"]) == 3
            assert f"{figure['throughput_fps']:.1f}" in printed
    assert all(figure["ratio"] is None for figure in ours["figures"])
    for own, first in zip(theirs["figures"], ours["figures"], strict=True):
        pairs = [a / b for a, b in zip(own["fps"]["turns"], first["fps"]["turns"], strict=True)]
        assert own["ratio"]["turns"] == pytest.approx(pairs)
        assert own["ratio"]["low"] <= own["ratio"]["median"] == sorted(pairs)[1] <= own["ratio"]["high"]
    drawn = plot.read_text()
    assert drawn.startswith("<?xml")
    assert "</svg>" in drawn
    (part,) = read(tmp_path)
    assert [system.name for system in part.systems] == [system["name"] for system in written["systems"]]
    assert part.systems[1].points[0].ratio == theirs["figures"][0]["ratio"]["median"]


def test_a_model_of_a_server_is_measured_in_batches_up_to_its_largest_with_several_callers(
    triton: LocalTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--clients", "4", "--url", triton.grpc_url, "--json", *QUICK]
    assert main(["benchmark", "tiny_onnx:1", "--against", "tiny_onnx", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    for number, system in enumerate(report["systems"], start=1):
        assert [figure["batch_size"] for figure in system["figures"]] == [1, 2, 4, 8, 16, 32]
        assert system["served_by"] == [f"tiny_onnx:{number} at {triton.grpc_url}"]
    assert {(figure["clients"], figure["calls"] >= 12) for figure in figures(report)} == {(4, True)}


def test_a_benchmark_that_fell_back_fails_and_one_with_too_few_turns_says_so(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--url", "127.0.0.1:9", "--batch-size", "1"]
    assert main(["benchmark", "triton", *arguments, "--turns", "2", "--turn-s", "0"]) == 1
    printed = capsys.readouterr()
    assert "small_onnx:1 in this process" in printed.out
    (line,) = (line for line in printed.err.splitlines() if "fell back" in line)
    assert "127.0.0.1:9" in line
    assert " * " in printed.out
    assert "The machine was too noisy to tell" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope_onnx"], "There is no nope_onnx at"),
        (["onnxruntme"], "onnxruntme is not a backend (insightface, "),
        (["tiny_onnx", "--batch-size", "1,64"], "takes at most 32 crops in a batch, and a batch size is 64"),
        (["missing.onnx"], "missing.onnx"),
        (["{built}/source-0.onnx"], "give insightface --source {built}/source-0.onnx"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_no_table(
    triton: LocalTriton, built: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name, *flags = arguments
    assert main(["benchmark", name.format(built=built), *flags, "--url", triton.grpc_url, *QUICK]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = (line for line in printed.err.splitlines() if line.startswith("arcface-client: "))
    assert message.format(built=built) in line


@pytest.mark.faults
def test_what_was_measured_before_the_server_died_is_kept_and_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_repository(tmp_path / "models")
    report = tmp_path / "speed.json"
    with LocalTriton(tmp_path / "models", stop_timeout_s=1) as server:
        arguments = ["--url", server.grpc_url, "--batch-size", "1", *MANY, "--output", str(report)]
        child = _start(["benchmark", "tiny_onnx", *arguments])
        _wait_for_turns(child)
        os.kill(server.pid, signal.SIGKILL)
        _, told = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "Not everything was measured: tiny_onnx: " in told
    written = json.loads(report.read_text())
    assert not written["complete"]
    assert 0 < len(figures(written)[0]["fps"]["turns"]) < 1000


@pytest.mark.faults
def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(config: Path, tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    arguments = ["--config", str(config), "--batch-size", "1", *MANY, "--output", str(report)]
    child = _start(["benchmark", "onnxruntime", *arguments])
    _wait_for_turns(child)
    workers = [pid for pid in _children(child.pid) if "spawn_main" in command_line(pid)]
    os.killpg(child.pid, signal.SIGINT)  # as a terminal sends it
    printed, told = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "Not everything was measured: interrupted" in told
    assert "Traceback" not in told
    written = json.loads(report.read_text())
    assert (written["complete"], written["stopped"]) == (False, "interrupted")
    assert f"{figures(written)[0]['throughput_fps']:.1f}" in printed
    assert workers
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_process_that_is_killed_is_told(config: Path) -> None:
    child = _start(["benchmark", "onnxruntime", "--config", str(config), "--turns", "1000"])
    wait_until(lambda: any("spawn_main" in command_line(pid) for pid in _children(child.pid)))
    for pid in _children(child.pid):
        if "spawn_main" in command_line(pid):
            os.kill(pid, signal.SIGKILL)
    printed, told = child.communicate(timeout=20)
    assert (child.returncode, printed) == (1, "")
    assert "The process of onnxruntime ended with exit code -9" in told


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "arcface_client", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def _wait_for_turns(child: subprocess.Popen[str]) -> None:
    assert child.stderr is not None
    assert any(line.startswith("benchmark: batch 1 (after") for line in child.stderr)
    time.sleep(1)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
