"""``arcface-builder compile`` as a person calls it."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from arcface_builder.check import crops as faces
from arcface_builder.cli.app import main
from arcface_builder.repository.publish import ModelRepository
from support.absent_gpu import AbsentGpu
from support.image_files import save_crops

pytestmark = pytest.mark.usefixtures("few_crops")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def at_hand(gpu: AbsentGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command find the absent GPU."""
    monkeypatch.setattr("arcface_builder.cli.compile.gpu_at_hand", lambda: gpu)


@pytest.fixture
def exact_at_hand(gpu: AbsentGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the GPU run everything in fp32, so that int8 and fp16 are refused."""
    exact = replace(gpu, runs_in="fp32")
    monkeypatch.setattr("arcface_builder.cli.compile.gpu_at_hand", lambda: exact)


def arguments(repository: ModelRepository, *more: str) -> list[str]:
    return ["compile", "--name", "small", "--repository", str(repository.root), *more]


def folder_of_crops(parent: Path) -> str:
    return str(save_crops(parent / "crops", faces.noise(32)))


@pytest.mark.usefixtures("at_hand")
def test_the_command_compiles_with_a_folder_of_crops(
    repository: ModelRepository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(repository, "--calibration-dir", folder_of_crops(tmp_path))

    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plans"][0]["path"].endswith("small_trt/1/small-fp16-sm86.plan")
    assert told["manifest"]["parity"]["compared_with"] == "source file"
    assert "--max-batch-size 32" in told["manifest"]["rebuild_command"]

    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("small-fp16-sm86.plan already in small_trt version 1 (TensorRT 1.7")
    assert second.endswith(" from the source file over 32 crops")


@pytest.mark.usefixtures("at_hand")
def test_a_plan_is_kept_in_the_named_cache_and_a_fleet_is_assembled_from_it(
    repository: ModelRepository, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.unlink()
    other = ["--cache-dir", str(tmp_path / "other"), "--timing-cache", str(tmp_path / "new/timing.cache")]

    assert main(arguments(repository, *other)) == 0

    assert " from the served ONNX model over 32 crops\n" in capsys.readouterr().out
    assert (tmp_path / "new/timing.cache").is_file()
    assert not list((tmp_path / "cache").rglob("*.plan"))
    assert main(["engines", "list", *other[:2]]) == 0
    assert "small-fp16-sm86.plan " in capsys.readouterr().out
    shutil.rmtree(repository.root / "small_trt")
    assert main(arguments(repository, *other[:2], "--cc", "8.6", "--from-store")) == 0
    assert capsys.readouterr().out.startswith("small-fp16-sm86.plan added to small_trt version 1")


@pytest.mark.usefixtures("at_hand")
def test_the_recorded_command_makes_the_same_plan_again(
    repository: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "other.yaml"
    config.write_text(
        "tensorrt: {hardware_compatible: false, small_batch_profile: false, opt_batch_size: 8}\n"
        "validation: {max_drift_cosine: 0.002}\n"
    )
    assert main(arguments(repository, "--config", str(config), "--json")) == 0
    first = json.loads(capsys.readouterr().out)["manifest"]

    words = shlex.split(first["rebuild_command"])
    start = words.index("arcface-builder")
    for name, value in (word.split("=") for word in words[:start]):
        monkeypatch.setenv(name, value)
    assert main([*words[start + 1 :], "--json"]) == 0

    second = json.loads(capsys.readouterr().out)
    assert second["from_store"]
    assert second["manifest"] == first


@pytest.mark.usefixtures("exact_at_hand")
def test_a_fallback_is_reported_and_its_recorded_command_asks_for_its_own_precision(
    repository: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    falling = ["--precision", "int8", "--calibration-dir", folder_of_crops(tmp_path), "--fallback-precision"]
    assert main(arguments(repository, *falling, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    first = told["manifest"]
    assert told["plans"][0]["path"].endswith("small-tf32-sm86.plan")
    assert [refusal[:16] for refusal in told["refusals"]] == ["int8 was refused", "fp16 was refused"]

    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "empty"))
    shutil.rmtree(repository.root / "small_trt")
    (repository.root / "small_trt-1-sm86.manifest.json").unlink()
    words = shlex.split(first["rebuild_command"])
    assert main([*words[words.index("arcface-builder") + 1 :], "--json"]) == 0

    second = json.loads(capsys.readouterr().out)
    assert not second["from_store"]
    for same in ("identity", "parity", "rebuild_command"):
        assert second["manifest"][same] == first[same]
    assert second["refusals"] == []


def test_switched_off_it_does_nothing(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENABLED", "false")

    assert main(arguments(repository)) == 0

    assert "TensorRT is switched off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "fp8", "Precision 'fp8' is unknown; expected fp32, tf32, fp16, bf16, mixed, int8"),
        ("opt_batch_size", "64", "opt_batch_size is 64; expected 1 to max_batch_size, 32"),
        ("opt_batch_size", "0", "opt_batch_size is 0; expected 1 to max_batch_size, 32"),
        ("max_batch_size", "0", "max_batch_size is 0; expected 1 to 1024"),
        ("workspace_size_mb", "1", "workspace_size_mb is 1; expected 256 or more"),
        ("instances", "0", "instances is 0; expected 1 to 64"),
    ],
)
def test_a_setting_out_of_its_range_is_a_failure_and_such_a_flag_wrong_usage(
    name: str,
    value: str,
    message: str,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if (name, value) != ("opt_batch_size", "64"):  # whether that fits depends on another setting
        assert main(arguments(repository, f"--{name.replace('_', '-')}", value)) == 2
    capsys.readouterr()

    monkeypatch.setenv(f"ARCFACE_TENSORRT_{name.upper()}", value)
    assert main(arguments(repository)) == 1
    assert capsys.readouterr().err.splitlines() == [f"arcface-builder: {message}."]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--name", "other"], "There is no other_onnx in"),
        (["--version", "7"], "There is no version 7 of small_onnx in"),
        (["--precision", "int8"], "there are none; give a folder of a few hundred with --calibration-dir"),
        (["--calibration-dir", "nope"], "The folder nope cannot be read: No such file or directory."),
        (["--calibration-dir", "."], "There is no image in .; give a folder of 112x112 face crops"),
        (["--cc", "8.6, 8.9", "--from-store"], "has no fp16 plan of small version 1 for sm86, sm89"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    more: list[str],
    message: str,
    repository: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    assert main(arguments(repository, *more)) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("arcface-builder: ")
    assert message in last
    assert not (repository.root / "small_trt").exists()


def test_a_damaged_manifest_is_one_line(
    repository: ModelRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    path = repository.manifest_path("small_onnx", 1)
    manifest = json.loads(path.read_text()) | {"source_location": {"kind": "onnx", "path": 7}}
    path.write_text(json.dumps(manifest))

    assert main(arguments(repository)) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("arcface-builder: ")
    assert str(path) in last
    assert "source_loc" in last


@pytest.mark.parametrize(
    "wrong",
    [
        ["--precision", "fp8"],
        ["--cc", "8.6"],
        ["--cc", "8,6", "--from-store"],
        ["--from-store"],
        ["--cc", "8.6", "--from-store", "--fallback-precision"],
        ["--cc", "8.6", "--from-store", "--timing-cache", "file"],
        ["--tensorrt-version", "11.1.0.106"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(wrong: list[str]) -> None:
    assert main(["compile", "--name", "small", *wrong]) == 2
