from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arcface_builder.errors import PlanDamagedError, RepositoryError
from arcface_builder.repository.config import read_config
from arcface_builder.repository.plans import AddedPlan, add_plans
from arcface_builder.repository.publish import ModelRepository
from arcface_client.errors import ManifestError
from support import children
from support.engines import stored_plan


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models")


def add(
    repository: ModelRepository, sm: str, version: int = 1, content: str = "plan", **of: Any
) -> AddedPlan:
    plan = stored_plan(repository.root.parent, sm, content, version=version, **of)
    (added,) = add_plans(repository, [plan], version=version)
    return added


def config(repository: ModelRepository) -> Any:
    return read_config(repository.root / "m_trt/config.pbtxt")


def served(repository: ModelRepository) -> list[int]:
    return list(config(repository).version_policy.specific.versions)


def files(repository: ModelRepository) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.root.rglob("*") if path.is_file()}


def test_a_plan_gets_its_version_map_and_manifest(repository: ModelRepository) -> None:
    added = add(repository, "86", version=3)

    assert (added.model, added.version, added.served, added.is_new) == ("m_trt", 3, (3,), True)
    assert added.path == repository.root / "m_trt/3/m-fp16-sm86.plan"
    assert added.path.read_bytes().endswith(b"plan 3 86 fp16")
    assert config(repository).cc_model_filenames == {"8.6": "m-fp16-sm86.plan"}
    assert config(repository).default_model_filename == ""
    record = json.loads((repository.root / "m_trt-3-sm86.manifest.json").read_text())
    assert record["plan_sha256"] == hashlib.sha256(added.path.read_bytes()).hexdigest()
    assert sorted(path.name for path in repository.root.iterdir() if path.is_dir()) == ["m_trt"]
    assert sorted(path.name for path in (repository.root / "m_trt").iterdir()) == ["3", "config.pbtxt"]


def test_several_plans_are_added_with_one_change_of_the_configuration(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    add(repository, "80")
    stored = [stored_plan(repository.root.parent, sm) for sm in ("80", "86", "90")]

    added = add_plans(repository, stored, version=1)

    assert [plan.is_new for plan in added] == [False, True, True]
    assert sorted(config(repository).cc_model_filenames) == ["8.0", "8.6", "9.0"]
    assert sum("config.pbtxt of all versions" in message for message in caplog.messages) == 1
    names = sorted(path.name for path in (repository.root / "m_trt/1").iterdir())
    assert names == ["m-fp16-sm80.plan", "m-fp16-sm86.plan", "m-fp16-sm90.plan"]


def test_no_plan_is_added_where_one_of_several_cannot_be(repository: ModelRepository) -> None:
    add(repository, "90", content="another")
    before = files(repository)
    stored = [stored_plan(repository.root.parent, sm) for sm in ("80", "86", "90")]

    with pytest.raises(RepositoryError, match=r"has a plan for sm90 already, m-fp16-sm90\.plan \(it has"):
        add_plans(repository, stored, version=1)

    assert files(repository) == before


def test_a_plan_that_cannot_be_copied_or_was_changed_leaves_nothing(
    repository: ModelRepository, tmp_path: Path
) -> None:
    plan = stored_plan(tmp_path, "80")

    with pytest.raises(RepositoryError, match="nothing was published"):
        add_plans(repository, [replace(plan, path=tmp_path)], version=1)
    with pytest.raises(PlanDamagedError, match="was removed meanwhile; compile again"):
        add_plans(repository, [replace(plan, path=tmp_path / "gone.plan")], version=1)
    plan.path.write_bytes(plan.path.read_bytes()[::-1])
    with pytest.raises(PlanDamagedError, match=r"has SHA-256 .*; its manifest says"):
        add_plans(repository, [plan], version=1)

    assert [path.name for path in repository.root.iterdir()] == [".lock"]


def test_the_same_plan_again_changes_nothing(repository: ModelRepository) -> None:
    path = add(repository, "80").path
    for file in (path, repository.root / "m_trt/config.pbtxt"):
        os.utime(file, (1, 1))

    assert not add(repository, "80").is_new

    assert path.stat().st_mtime == 1
    assert (repository.root / "m_trt/config.pbtxt").stat().st_mtime == 1


def without_manifest(record: Path) -> None:
    record.unlink()


def in_another_precision(record: Path) -> None:
    record.write_text(record.read_text().replace('"precision": "fp16"', '"precision": "int8"'))


def of_another_plan(record: Path) -> None:
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "plan_sha256": "0" * 64}))


@pytest.mark.parametrize(("content", "precision"), [("another", "fp16"), ("plan", "int8")])
def test_a_published_plan_is_never_changed(content: str, precision: str, repository: ModelRepository) -> None:
    path = add(repository, "80").path

    with pytest.raises(RepositoryError, match=r"sm80 already, m-fp16-sm80\.plan .* never changed"):
        add(repository, "80", content=content, precision=precision)

    assert path.read_bytes().endswith(b"plan 1 80 fp16")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("alter", [without_manifest, in_another_precision, of_another_plan])
def test_the_same_plan_again_restores_its_manifest(
    alter: Callable[[Path], None], repository: ModelRepository
) -> None:
    path = add(repository, "80").path
    os.utime(path, (1, 1))
    record = repository.root / "m_trt-1-sm80.manifest.json"
    written = record.read_text()
    alter(record)

    assert not add(repository, "80").is_new

    assert record.read_text() == written
    assert path.stat().st_mtime == 1


def test_a_damaged_manifest_is_named(repository: ModelRepository) -> None:
    add(repository, "80")
    record = repository.root / "m_trt-1-sm80.manifest.json"
    record.write_text(record.read_text()[1:])

    with pytest.raises(ManifestError, match=f"^{record} is not JSON"):
        add(repository, "90")


def test_of_complete_versions_the_newest_two_are_served(repository: ModelRepository) -> None:
    assert [add(repository, "80", version=version).served for version in (1, 2, 3)] == [(1,), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("first", "second", "precision", "missing"),
    [
        (["80"], "90", "fp16", "8.0"),
        (["80", "90"], "80", "int8", "9.0"),
        (["80", "90"], "120", "fp16", "8.0, 9.0"),
        (["89", "120", "75", "86"], "86", "fp16", "7.5, 8.9, 12.0"),
    ],
    ids=["another architecture", "another precision", "one architecture more", "named in their order"],
)
def test_an_incomplete_new_version_takes_no_plan_away(
    first: list[str],
    second: str,
    precision: str,
    missing: str,
    repository: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for sm in first:
        add(repository, sm)
    before = config(repository)

    assert add(repository, second, version=2, precision=precision).served == (1,)

    assert config(repository) == before
    (warning,) = caplog.messages
    assert f"version 1 serves on until version 2 has plans for {missing} too" in warning
    assert "or remove version 1 to give these architectures up" in warning


def test_a_new_version_takes_over_with_its_last_plan(repository: ModelRepository) -> None:
    add(repository, "80")
    add(repository, "90")
    add(repository, "80", version=2, precision="int8")

    assert add(repository, "90", version=2, precision="int8").served == (2,)
    assert config(repository).cc_model_filenames == {"8.0": "m-int8-sm80.plan", "9.0": "m-int8-sm90.plan"}


def test_a_plan_for_an_old_version_does_not_bring_it_back(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    add(repository, "80")
    add(repository, "80", version=2)

    assert add(repository, "90").served == (1, 2)
    assert config(repository).cc_model_filenames == {"8.0": "m-fp16-sm80.plan"}
    (warning,) = caplog.messages
    assert "version 1 of m_trt for 9.0 is not served: version 2 is; compile that" in warning


def test_an_architecture_whose_plans_were_removed_is_given_up_with_a_warning(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    add(repository, "80")
    add(repository, "90")
    shutil.rmtree(repository.root / "m_trt/1")

    assert add(repository, "80", version=2).served == (2,)
    assert config(repository).cc_model_filenames == {"8.0": "m-fp16-sm80.plan"}
    (warning,) = caplog.messages
    assert "m_trt no longer has a plan for 9.0" in warning


@pytest.mark.parametrize("of", [{"tensorrt_version": "11.2.0.5"}, {"platform": "linux-aarch64"}])
def test_a_version_is_by_one_tensorrt_and_for_one_platform(
    of: dict[str, Any], repository: ModelRepository
) -> None:
    add(repository, "80")
    before = files(repository)

    message = (
        f"m-fp16-sm80.plan would be by TensorRT 11.1.0.106 for linux-x86_64, .* {next(iter(of.values()))}"
    )
    with pytest.raises(RepositoryError, match=message):
        add(repository, "90", **of)
    with pytest.raises(RepositoryError, match="no server loads both"):
        folder = repository.root.parent
        pair = [stored_plan(folder, "80", version=2), stored_plan(folder, "90", version=2, **of)]
        add_plans(repository, pair, version=2)

    assert files(repository) == before


def test_after_a_change_of_tensorrt_only_its_own_versions_are_served(repository: ModelRepository) -> None:
    for version in (1, 2):
        add(repository, "80", version)
        add(repository, "90", version)
    assert served(repository) == [1, 2]

    newer = {"tensorrt_version": "11.2.0.5"}
    assert add(repository, "80", 3, **newer).served == (1, 2)
    assert add(repository, "90", 3, **newer).served == (3,)
    assert served(repository) == [3]


def test_an_operators_changes_stay_when_a_plan_is_added(
    repository: ModelRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    add_plans(repository, [stored_plan(tmp_path, "80")], version=1, instances=4)
    path = repository.root / "m_trt/config.pbtxt"
    path.write_text(path.read_text().replace("dynamic_batching {", "dynamic_batching { priority_levels: 2"))
    expected = config(repository)

    add_plans(repository, [stored_plan(tmp_path, "90", max_batch_size=16)], version=1)

    assert "of all versions of m_trt changes: - max_batch_size: 32, + max_batch_size: 16" in caplog.text
    expected.cc_model_filenames["9.0"] = "m-fp16-sm90.plan"
    expected.max_batch_size = expected.model_warmup[1].batch_size = 16
    del expected.optimization.cuda.graph_spec[16:]
    assert config(repository) == expected
    assert config(repository).instance_group[0].count == 4


def test_instances_are_changed_only_when_they_are_given(repository: ModelRepository, tmp_path: Path) -> None:
    for given, instances in ((None, 2), (3, 3), (None, 3), (1, 1)):
        add_plans(repository, [stored_plan(tmp_path, "80")], version=1, instances=given)
        assert config(repository).instance_group[0].count == instances


def test_a_configuration_that_triton_cannot_read_is_named(repository: ModelRepository) -> None:
    add(repository, "80")
    path = repository.root / "m_trt/config.pbtxt"
    path.write_text("max_batch_size: many")

    with pytest.raises(RepositoryError, match=rf"^{path} is not a Triton configuration"):
        add(repository, "90")


ADD = """
import signal
import sys
from pathlib import Path
from arcface_builder.repository import plans
from arcface_builder.repository.publish import ModelRepository
from support.engines import stored_plan

def stop(*arguments, **more):
    print("in the middle", flush=True)
    signal.pause()

folder, sm, fate = sys.argv[1:]
if fate == "killed":
    Path.rename = stop  # its manifest is there, and its plan is not
plan = stored_plan(Path(folder), sm)
print("begins", flush=True)
plans.add_plans(ModelRepository(Path(folder) / "models"), [plan], version=1)
"""

CAPABILITIES = {"75": "7.5", "80": "8.0", "86": "8.6", "90": "9.0"}


def check_whole(root: Path, sms: list[str]) -> None:
    """Check that the configuration names the plans of these architectures alone, and all of them exist."""
    names = dict(config(ModelRepository(root)).cc_model_filenames)
    assert names == {CAPABILITIES[sm]: f"m-fp16-sm{sm}.plan" for sm in sms}
    assert sorted(path.name for path in (root / "m_trt/1").iterdir()) == sorted(names.values())
    for sm in sms:
        record = json.loads((root / f"m_trt-1-sm{sm}.manifest.json").read_text())
        plan = (root / f"m_trt/1/m-fp16-sm{sm}.plan").read_bytes()
        assert record["plan_sha256"] == hashlib.sha256(plan).hexdigest()
    assert not list(root.parent.glob(".models-staging-*"))


def test_concurrent_builds_go_on_where_one_is_killed_with_the_lock(tmp_path: Path) -> None:
    with ExitStack() as stack:
        killed = stack.enter_context(children.start(ADD, tmp_path, "75", "killed"))
        stack.callback(killed.kill)
        assert killed.stdout is not None
        assert [killed.stdout.readline() for _ in range(2)] == ["begins\n", "in the middle\n"]
        others = [stack.enter_context(children.start(ADD, tmp_path, sm, "ends")) for sm in ("80", "86", "90")]
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == "begins\n"
        killed.kill()
        assert [other.wait(30) for other in others] == [0] * 3

    check_whole(tmp_path / "models", ["80", "86", "90"])
    add(ModelRepository(tmp_path / "models"), "75")
    check_whole(tmp_path / "models", ["75", "80", "86", "90"])
