"""``arcface-builder compile`` as a person calls it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.cli.app import main
from arcface_builder.errors import NoGpuError
from arcface_builder.repository.publish import ModelRepository
from arcface_client.settings import load_tensorrt_settings
from support.absent_gpu import AbsentGpu

pytestmark = pytest.mark.usefixtures("few_crops")


@pytest.fixture
def at_hand(gpu: AbsentGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command find the absent GPU, and keep its plans where the test looks."""
    monkeypatch.setattr("arcface_builder.cli.compile.gpu_at_hand", lambda: gpu)
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def exact_at_hand(at_hand: None, gpu: AbsentGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the GPU run everything in fp32, so that int8 and fp16 are refused."""
    exact = replace(gpu, runs_in="fp32")
    monkeypatch.setattr("arcface_builder.cli.compile.gpu_at_hand", lambda: exact)


def arguments(repository: ModelRepository, *more: str) -> list[str]:
    return ["compile", "--name", "small", "--repository", str(repository.root), *more]


OUT_OF_RANGE = [
    ("opt_batch_size", "64", "opt_batch_size is 64; expected 1 to max_batch_size, 32"),
    ("max_batch_size", "0", "max_batch_size is 0; expected 1 to 1024"),
    ("workspace_size_mb", "1", "workspace_size_mb is 1; expected 256 or more"),
    ("instances", "0", "instances is 0; expected 1 to 64"),
]


@pytest.mark.parametrize(("name", "value", "message"), OUT_OF_RANGE)
def test_a_flag_out_of_its_range_is_wrong_usage_and_a_setting_a_failure(
    name: str,
    value: str,
    message: str,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(repository, f"--{name.replace('_', '-')}", value))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err

    monkeypatch.setenv(f"ARCFACE_TENSORRT_{name.upper()}", value)
    assert main(arguments(repository, "--precision", "fp16")) == 1
    assert capsys.readouterr().err.splitlines() == [f"arcface-builder: {message}."]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--name", "other"], "There is no other_onnx in"),
        (["--precision", "int8"], "there are none; give a folder of them with --calibration-dir"),
        (["--calibration-dir", "nope"], "There is no file or folder nope."),
        (["--cc", "8.6", "--from-store"], "The store has no fp16 plans of small version 1"),
        (["--cc", "8.6, 8.9", "--from-store"], "The store has no fp16 plans of small version 1"),
    ],
)
def test_bad_input_is_one_line(
    more: list[str],
    message: str,
    repository: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))

    assert main(arguments(repository, *more)) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("arcface-builder: ")
    assert message in last
    assert not (repository.root / "small_trt").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda manifest: "[[", "is not JSON"),
        (lambda manifest: json.dumps(manifest | {"source": {}}), "lacks source.kind"),
        (
            lambda manifest: json.dumps(manifest | {"source_location": None}),
            "source_location is None; expected an object",
        ),
        (
            lambda manifest: json.dumps(manifest | {"source_location": {"kind": "onnx", "path": 7}}),
            "source_location: {'kind': 'onnx', 'path': 7} is no place",
        ),
    ],
    ids=["no JSON", "no source", "no place", "no path"],
)
@pytest.mark.usefixtures("at_hand")
def test_a_damaged_manifest_is_one_line(
    damage: Callable[[dict[str, Any]], str],
    message: str,
    repository: ModelRepository,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = repository.manifest_path("small_onnx", 1)
    path.write_text(damage(json.loads(path.read_text())))

    assert main(arguments(repository)) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("arcface-builder: ")
    assert str(path) in last
    assert message in last


def test_a_machine_without_tensorrt_or_gpu_says_what_is_missing(
    repository: ModelRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(arguments(repository))

    last = capsys.readouterr().err.splitlines()[-1]
    if status == 0:
        pytest.skip("this machine has both")
    has_tensorrt = importlib.util.find_spec("tensorrt") is not None
    missing = "(CUDA cannot be used|There is no GPU)" if has_tensorrt else "TensorRT cannot be imported"
    assert re.match(f"arcface-builder: {missing}", last)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--precision", "fp8"],
        ["--cc", "8.6"],
        ["--cc", "8,6", "--from-store"],
        ["--cc", "08.6", "--from-store"],
        ["--from-store"],
        ["--cc", "8.6", "--from-store", "--fallback-precision"],
        ["--cc", "8.6", "--from-store", "--calibration-dir", "crops"],
        ["--tensorrt-version", "11.1.0.106"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["compile", "--name", "small", *wrong])

    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "The timing cache folder is no regular file; name a file."),
        ("pipe", "The timing cache pipe is no regular file; name a file."),
        ("file/timing.cache", "cannot be written: file is no folder; name another file."),
        ("file/new/timing.cache", "cannot be written: file is no folder; name another file."),
        ("/proc/timing.cache", "/proc/timing.cache cannot be written: "),
        ("/proc/new/timing.cache", "/proc/new cannot be written: "),
        ("x" * 300, "cannot be read: File name too long; name another file."),
        ("-", "- is not standard output here; give the name of a file to write."),
    ],
)
def test_a_timing_cache_that_cannot_be_written_is_wrong_usage_before_the_gpu_is_looked_for(
    name: str,
    message: str,
    repository: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "arcface_builder.cli.compile.gpu_at_hand", lambda: pytest.fail("the GPU was looked for")
    )
    folder = tmp_path / "work"
    (folder / "folder").mkdir(parents=True)
    (folder / "file").touch()
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)

    with pytest.raises(SystemExit) as exit_:
        main(arguments(repository, "--timing-cache", name))

    assert exit_.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("arcface-builder compile: error: --timing-cache: ")
    assert message in last
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "folder", "pipe"]


def test_a_timing_cache_is_checked_without_making_its_folder(
    repository: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> None:
        raise NoGpuError("There is no GPU.")

    monkeypatch.setattr("arcface_builder.cli.compile.gpu_at_hand", no_gpu)

    assert main(arguments(repository, "--timing-cache", str(tmp_path / "new/caches/timing.cache"))) == 1

    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize("name", ["new/caches/timing.cache", "link/timing.cache"])
def test_the_folders_of_a_timing_cache_are_made_when_it_is_written(
    name: str, repository: ModelRepository, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "not yet")

    assert main(arguments(repository, "--timing-cache", str(tmp_path / name))) == 0

    assert [file.name for file in (tmp_path / name).parent.iterdir()] == ["timing.cache"]


def test_switched_off_it_does_nothing(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENABLED", "false")

    assert main(arguments(repository)) == 0

    assert "TensorRT is switched off" in capsys.readouterr().err


@pytest.mark.usefixtures("at_hand")
def test_a_folder_without_images_is_refused(
    repository: ModelRepository,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "crops").mkdir()

    assert main(arguments(repository, "--calibration-dir", str(tmp_path / "crops"))) == 1

    assert "has no images; --calibration-dir expects 112x112 face crops" in capsys.readouterr().err


def folder_of_crops(parent: Path) -> Path:
    folder = parent / "crops"
    folder.mkdir()
    for index, crop in enumerate(faces.noise(32)):
        cv2.imwrite(str(folder / f"{index}.png"), crop)
    return folder


@pytest.mark.usefixtures("at_hand")
def test_the_command_compiles_with_a_folder_of_crops_and_tells_it_as_json(
    repository: ModelRepository,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = folder_of_crops(tmp_path)
    command = arguments(repository, "--calibration-dir", str(folder))

    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plans"][0]["path"].endswith("small_trt/1/small-fp16-sm86.plan")
    assert told["manifest"]["parity"]["compared_with"] == "source file"
    assert "--max-batch-size 32" in told["manifest"]["rebuild_command"]

    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("small-fp16-sm86.plan already in small_trt version 1 (TensorRT 1.7")


@pytest.mark.usefixtures("at_hand")
def test_the_source_of_a_model_that_was_built_by_a_relative_path_is_found_from_another_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = ModelRepository(tmp_path / "models")
    monkeypatch.chdir(source.parent)
    build = ["build", "--name", "small", "--repository", str(repository.root), "--onnx-path", source.name]
    assert main(build) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    assert main(arguments(repository)) == 0

    assert " from the source file over 32 crops\n" in capsys.readouterr().out


@pytest.mark.usefixtures("at_hand")
def test_the_plan_is_kept_in_the_cache_that_is_named(
    repository: ModelRepository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--cache-dir", str(tmp_path / "other")]

    assert main(arguments(repository, *other)) == 0

    assert not list((tmp_path / "cache").rglob("*.plan"))
    capsys.readouterr()
    assert main(["engines", "list", *other]) == 0
    assert "small-fp16-sm86.plan " in capsys.readouterr().out
    assert main(arguments(repository, *other, "--cc", "8.6", "--from-store")) == 0


@pytest.mark.usefixtures("at_hand")
def test_the_command_says_if_the_source_was_not_at_hand(
    repository: ModelRepository, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.unlink()

    assert main(arguments(repository)) == 0
    assert " from the served ONNX model over 32 crops\n" in capsys.readouterr().out

    assert main(arguments(repository, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["manifest"]["parity"]["compared_with"] == "served ONNX model"


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
    assert load_tensorrt_settings().max_drift_cosine == 0.002


@pytest.mark.usefixtures("exact_at_hand")
def test_the_recorded_command_of_a_fallback_asks_for_its_own_precision(
    repository: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = folder_of_crops(tmp_path)
    falling = ["--precision", "int8", "--calibration-dir", str(folder), "--fallback-precision"]
    assert main(arguments(repository, *falling, "--json")) == 0
    first = json.loads(capsys.readouterr().out)["manifest"]
    assert first["identity"]["precision"] == "tf32"
    assert len(first["refusals"]) == 2

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


@pytest.mark.usefixtures("exact_at_hand")
def test_the_command_tells_what_was_refused(
    repository: ModelRepository,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(repository, "--fallback-precision", "--json")) == 0

    told = json.loads(capsys.readouterr().out)
    (refusal,) = told["refusals"]
    assert refusal.startswith("fp16 was refused: The plan named fp16 runs its convolutions otherwise")
    assert told["plans"][0]["path"].endswith("small-tf32-sm86.plan")
