from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from arcface_builder.errors import OptionError, RepositoryError
from arcface_builder.repository import ModelRepository, check_name
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from exports import small_arcface

COMMAND = [sys.executable, "-m", "arcface_builder.cli", "build", "--name", "small", "--onnx-path"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    onnx.save_model(small_arcface(), path)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models")


def publish(repository: ModelRepository, content: str = "weights", config: str = "config") -> int:
    with repository.staging() as staged:
        (staged / "model.onnx").write_text(content)
        return repository.publish("m", staged, config=config, manifest=str).version


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_each_version_is_the_next_and_stays_as_it_is(repository: ModelRepository) -> None:
    assert [publish(repository, "one"), publish(repository, "two")] == [1, 2]

    assert (repository.root / "m/1/model.onnx").read_text() == "one"
    assert (repository.root / "m/2/model.onnx").read_text() == "two"
    assert repository.manifest_path("m", 2).read_text() == "2"


def test_triton_finds_no_folder_but_the_models(repository: ModelRepository) -> None:
    publish(repository)

    assert [path.name for path in repository.root.iterdir() if path.is_dir()] == ["m"]
    assert sorted(path.name for path in (repository.root / "m").iterdir()) == ["1", "config.pbtxt"]
    assert hidden(repository.root.parent) == []


def test_the_configuration_is_touched_only_if_it_changes(repository: ModelRepository) -> None:
    publish(repository)
    config = repository.root / "m/config.pbtxt"
    os.utime(config, (1, 1))

    publish(repository)
    assert config.stat().st_mtime == 1

    publish(repository, config="another")
    assert config.read_text() == "another"


def test_nothing_is_left_of_a_build_that_fails(repository: ModelRepository) -> None:
    with pytest.raises(ZeroDivisionError), repository.staging() as staged:
        (staged / "model.onnx").write_text("half")
        raise ZeroDivisionError

    assert repository.versions("m") == []
    assert hidden(repository.root.parent) == []


def test_the_staging_folder_of_a_live_builder_is_left_alone(repository: ModelRepository) -> None:
    with repository.staging() as first:
        publish(repository)
        assert first.is_dir()
    assert publish(repository) == 2


@pytest.mark.parametrize(
    "name", ["", ".", "a/b", "../up", "a b", "-x", ".hidden", "ünïcode", "a\n", "x" * 101]
)
def test_a_name_that_no_folder_can_take_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be used; expected"):
        check_name(name)


def test_a_repository_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")

    with pytest.raises(RepositoryError, match="Cannot write the model repository"):
        publish(ModelRepository(tmp_path / "models"))


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    # A limit on the size of files makes the kernel refuse the write, as a full disk does.
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100_000, 100_000)); "
    run = "import sys; from arcface_builder.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["build", "--name", "small", "--onnx-path", str(source), "--repository", str(root)]

    result = subprocess.run(
        [sys.executable, "-c", limit + run, *arguments], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"arcface-builder: No space left to write a version into {root} ")
    assert os.strerror(errno.EFBIG) in last
    assert [path.name for path in root.iterdir()] == [".lock"]
    assert hidden(tmp_path) == []


def test_two_builds_at_once_both_succeed(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    command = [*COMMAND, str(source), "--repository", str(root)]

    builds = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
    ]

    assert [build.wait() for build in builds] == [0, 0]
    assert_whole(root, versions=[1, 2])
    assert hidden(tmp_path) == []


def test_a_build_killed_at_any_moment_leaves_the_old_repository_or_the_new(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    command = [*COMMAND, str(source), "--repository", str(root)]
    start = time.monotonic()
    subprocess.run(command, capture_output=True, check=True)
    duration_s = time.monotonic() - start
    versions = 1

    moments = 8
    for moment in range(moments):
        build = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Loading Python is half of it, and nothing happens then.
        time.sleep(duration_s * (0.5 + 0.55 * moment / moments))
        build.send_signal(signal.SIGKILL)
        build.wait()
        found = len(ModelRepository(root).versions("small_onnx"))
        assert found in (versions, versions + 1)
        versions = found
        assert_whole(root, versions=list(range(1, versions + 1)))

    subprocess.run(command, capture_output=True, check=True)
    assert_whole(root, versions=list(range(1, versions + 2)))
    assert hidden(tmp_path) == []


def assert_whole(root: Path, *, versions: list[int]) -> None:
    repository = ModelRepository(root)
    assert repository.versions("small_onnx") == versions
    assert (root / "small_onnx/config.pbtxt").is_file()
    for version in versions:
        OnnxRuntime(root / f"small_onnx/{version}/model.onnx").close()
        assert repository.manifest_path("small_onnx", version).is_file()
