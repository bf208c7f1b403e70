from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arcface_builder.errors import OptionError, RepositoryError
from arcface_builder.repository.publish import ModelRepository, check_name
from arcface_client.runtimes.onnxruntime import OnnxRuntime

COMMAND = [sys.executable, "-m", "arcface_builder", "build", "--name", "small", "--onnx-path"]


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models")


def publish(repository: ModelRepository, content: str = "weights", config: str = "config") -> int:
    with repository.staging() as staged:
        (staged / "model.onnx").write_text(content)
        return repository.publish("m", staged, config=config, manifest=str)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_each_version_is_the_next_and_stays_as_it_is(repository: ModelRepository) -> None:
    assert [publish(repository, "one"), publish(repository, "two")] == [1, 2]

    assert (repository.root / "m/1/model.onnx").read_text() == "one"
    assert (repository.root / "m/2/model.onnx").read_text() == "two"
    assert repository.manifest_path("m", 2).read_text() == "2"
    assert [path.name for path in repository.root.iterdir() if path.is_dir()] == ["m"]
    assert sorted(path.name for path in (repository.root / "m").iterdir()) == ["1", "2", "config.pbtxt"]
    assert hidden(repository.root.parent) == []


def test_the_configuration_is_touched_only_if_it_changes(repository: ModelRepository) -> None:
    publish(repository)
    config = repository.root / "m/config.pbtxt"
    os.utime(config, (1, 1))

    publish(repository)
    assert config.stat().st_mtime == 1

    publish(repository, config="another")
    assert config.read_text() == "another"


def test_the_staging_folder_of_a_live_builder_is_left_alone(repository: ModelRepository) -> None:
    with repository.staging() as first:
        publish(repository)
        assert first.is_dir()
    assert publish(repository) == 2


@pytest.mark.parametrize(
    "name", ["", ".", "a/b", "../up", "a b", "-x", ".hidden", "ünïcode", "a\n", "x" * 101]
)
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be used; expected"):
        check_name(name)


def test_a_repository_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")

    with pytest.raises(RepositoryError, match="Cannot write the model repository"):
        publish(ModelRepository(tmp_path / "models"))


def test_a_full_disk_is_one_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    # A limit on the size of files makes the kernel refuse the write, as a full disk does.
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100_000, 100_000)); "
    run = "import sys; from arcface_builder.cli.app import main; sys.exit(main(sys.argv[1:]))"
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


def test_concurrent_builds_get_different_versions(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    command = [*COMMAND, str(source), "--repository", str(root)]

    builds = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
    ]

    assert [build.wait() for build in builds] == [0, 0]
    assert_whole(root, versions=[1, 2])
    assert hidden(tmp_path) == []


STEPS = """
import errno, json, os, shutil, signal, sys
from pathlib import Path
from arcface_builder.errors import RepositoryError
from arcface_builder.repository.publish import ModelRepository

top, mode = Path(sys.argv[1]), sys.argv[2]
steps = {"open", "os.mkdir", "os.rename", "os.remove"}
state = {"count": 0, "at": -1}

def hook(event, arguments):
    if event in steps and str(top) in str(arguments[0]):
        state["count"] += 1
        if state["count"] == state["at"]:
            if mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def publish(root, content, config):
    repository = ModelRepository(root)
    with repository.staging() as staged:
        (staged / "model.onnx").write_text(content)
        repository.publish("m", staged, config=config, manifest=str)

def look(root):
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}

sys.addaudithook(hook)
outcomes = []
for config in ("same", "changed"):
    for step in range(1, 1000):
        root = top / f"{config}-{step}" / "models"
        publish(root, "one", "same")
        answer, say = os.pipe()
        child = os.fork()
        if not child:
            state.update(count=0, at=step)
            said = "done"
            try:
                publish(root, "two", config)
            except RepositoryError as error:
                said = str(error)
            reached = state["count"] >= step
            state["at"] = -1
            os.write(say, json.dumps([said, reached]).encode())
            os._exit(0)
        os.close(say)
        os.waitpid(child, 0)
        with os.fdopen(answer, "rb") as pipe:
            said, reached = json.loads(pipe.read() or '["killed", true]')
        files = look(root)
        if reached:
            publish(root, "three", config)
        hidden = [path.name for path in root.parent.iterdir() if path.name != "models"]
        outcomes.append([config, said, files, look(root), hidden])
        shutil.rmtree(root.parent)
        if not reached:
            break
print(json.dumps(outcomes))
"""
"""Publishes a second version, stopped before each of its steps in the file system in turn."""


@pytest.mark.parametrize("mode", ["kill", "full disk"])
def test_a_version_is_there_whole_or_not_at_all_whatever_step_a_build_stops_at(
    mode: str, tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", STEPS, str(tmp_path), mode], capture_output=True, text=True, check=True
    )

    outcomes = json.loads(result.stdout)
    assert len(outcomes) > 30
    assert {said == "done" for _, said, *_ in outcomes} == {True, False}
    for config, said, files, later, hidden in outcomes:
        models = {name: text for name, text in files.items() if name.startswith("m/")}
        configuration = models.pop("m/config.pbtxt")
        published = models == {"m/1/model.onnx": "one", "m/2/model.onnx": "two"}
        assert published or models == {"m/1/model.onnx": "one"}
        assert configuration == (config if said == "done" else "same") or published
        assert not published or files["m-2.manifest.json"] == "2"
        if mode == "full disk":
            assert published == (said == "done" or "is published in" in said)
            assert published or "m-2.manifest.json" not in files
        if said != "done":  # The next build works, whatever was left.
            assert "three" in later.values()
            assert later["m/config.pbtxt"] == config
        assert hidden == []


def test_the_number_of_a_removed_version_is_not_used_again(repository: ModelRepository) -> None:
    publish(repository)
    publish(repository)
    shutil.rmtree(repository.root / "m/2")

    assert publish(repository) == 3
    assert repository.manifest_path("m", 2).read_text() == "2"


def test_a_version_is_staged_inside_a_repository_that_is_a_mount(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if repository.root not in path.parents:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)

    assert publish(repository) == 1
    assert hidden(repository.root) == [".lock"]


def test_a_configuration_changed_by_hand_is_kept_unless_options_are_given(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    publish(repository, config="count: 1")
    (repository.root / "m/config.pbtxt").write_text("count: 9  # by hand")

    with repository.staging() as staged:
        repository.publish("m", staged, config="count: 1", manifest=str, keep_config=True)
    assert (repository.root / "m/config.pbtxt").read_text() == "count: 9  # by hand"
    assert caplog.text == ""

    publish(repository, config="count: 2")
    assert "of all versions changes: - count: 9  # by hand, + count: 2" in caplog.text


def assert_whole(root: Path, *, versions: list[int]) -> None:
    repository = ModelRepository(root)
    assert repository.versions("small_onnx") == versions
    assert (root / "small_onnx/config.pbtxt").is_file()
    for version in versions:
        OnnxRuntime(root / f"small_onnx/{version}/model.onnx").close()
        assert repository.manifest_path("small_onnx", version).is_file()
