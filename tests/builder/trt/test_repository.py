from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_builder.errors import PlanDamagedError, RepositoryError
from arcface_builder.repository.publish import ModelRepository, replace_text
from arcface_builder.repository.publish_plan import AddedPlan, add_plan, add_plans
from arcface_builder.store import StoredPlan
from arcface_client.errors import ManifestError
from support import children
from support.engines import stored_plan


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models")


def add(
    repository: ModelRepository, sm: str, version: int = 1, content: str = "plan", *, precision: str = "fp16"
) -> AddedPlan:
    folder = repository.root.parent
    plan = stored_plan(folder, sm, content, version=version, precision=precision)
    return add_plan(repository, plan, version=version)


def config(repository: ModelRepository) -> model_config_pb2.ModelConfig:
    text = (repository.root / "m_trt/config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_plan_gets_its_version_map_and_record(repository: ModelRepository) -> None:
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


def test_of_several_plans_none_is_added_where_one_cannot_be(repository: ModelRepository) -> None:
    add(repository, "90", content="another")
    before = {path: path.read_bytes() for path in repository.root.rglob("*") if path.is_file()}
    stored = [stored_plan(repository.root.parent, sm) for sm in ("80", "86", "90")]

    with pytest.raises(RepositoryError, match=r"has a plan for sm90 already, m-fp16-sm90\.plan \(of other"):
        add_plans(repository, stored, version=1)

    assert {path: path.read_bytes() for path in repository.root.rglob("*") if path.is_file()} == before


def test_of_several_plans_none_is_added_where_the_disk_is_full(repository: ModelRepository) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from arcface_builder.errors import RepositoryError
from arcface_builder.repository.publish_plan import add_plans
from arcface_builder.repository.publish import ModelRepository
from support.engines import stored_plan

folder = Path(sys.argv[1])
stored = [stored_plan(folder, "80"), stored_plan(folder, "86", "x" * 50_000)]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    add_plans(ModelRepository(folder / "models"), stored, version=1)
except RepositoryError as error:
    print(str(error).endswith("Nothing was published."))
"""
    printed = children.run(code, repository.root.parent)

    assert printed == "True\n"
    assert [path.name for path in repository.root.rglob("*.plan")] == []


def test_an_architecture_is_added_beside_another(repository: ModelRepository) -> None:
    add(repository, "80")
    add(repository, "90")

    assert config(repository).cc_model_filenames == {"8.0": "m-fp16-sm80.plan", "9.0": "m-fp16-sm90.plan"}
    assert sorted(path.name for path in (repository.root / "m_trt/1").iterdir()) == [
        "m-fp16-sm80.plan",
        "m-fp16-sm90.plan",
    ]


def test_a_new_model_appears_with_its_configuration_and_is_not_touched_again(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def note(path: Path, text: str, *, via: Path) -> None:
        written.append(path)
        replace_text(path, text, via=via)

    monkeypatch.setattr("arcface_builder.repository.publish_plan.replace_text", note)
    add(repository, "80")

    assert repository.root / "m_trt/config.pbtxt" not in written
    assert (repository.root / "m_trt/config.pbtxt").is_file()


def test_the_same_plan_again_changes_nothing(repository: ModelRepository) -> None:
    path = add(repository, "80").path
    for file in (path, repository.root / "m_trt/config.pbtxt"):
        os.utime(file, (1, 1))

    assert not add(repository, "80").is_new

    assert path.stat().st_mtime == 1
    assert (repository.root / "m_trt/config.pbtxt").stat().st_mtime == 1


@pytest.mark.parametrize(("content", "precision"), [("another", "fp16"), ("plan", "int8")])
def test_changing_a_plan_in_place_is_refused(
    content: str, precision: str, repository: ModelRepository
) -> None:
    path = add(repository, "80").path

    with pytest.raises(RepositoryError, match=r"sm80 already, m-fp16-sm80\.plan .* never changed"):
        add(repository, "80", content=content, precision=precision)

    assert path.read_bytes().endswith(b"plan 1 80 fp16")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def without_record(record: Path) -> None:
    record.unlink()


def in_another_precision(record: Path) -> None:
    record.write_text(record.read_text().replace('"precision": "fp16"', '"precision": "int8"'))


def of_another_plan(record: Path) -> None:
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "plan_sha256": "0" * 64}))


ALTERATIONS = [without_record, in_another_precision, of_another_plan]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("alter", ALTERATIONS)
def test_a_plan_is_not_changed_in_place_whatever_became_of_its_record(
    alter: Callable[[Path], None], precision: str, repository: ModelRepository
) -> None:
    path = add(repository, "80").path
    alter(repository.root / "m_trt-1-sm80.manifest.json")

    with pytest.raises(RepositoryError, match=r"sm80 already, m-fp16-sm80\.plan .* never changed"):
        add(repository, "80", content="another", precision=precision)

    assert path.read_bytes().endswith(b"plan 1 80 fp16")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_the_same_plan_again_mends_its_record(
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"precision": "fp16"', '"precision": "fp9"', "identity.precision is 'fp9'; expected one of fp32"),
        ('"schema_version": 1', '"schema_version": 99', "has schema_version 99; expected 1"),
        ('"plan_bytes": ', '"plan_bytes": -', "plan_bytes is -"),
        ("{", "", "is not JSON"),
    ],
)
def test_a_record_that_cannot_be_true_is_named(
    repository: ModelRepository, old: str, new: str, message: str
) -> None:
    add(repository, "80")
    record = repository.root / "m_trt-1-sm80.manifest.json"
    record.write_text(record.read_text().replace(old, new, 1))

    with pytest.raises(ManifestError, match=f"^{record}:? {message}"):
        add(repository, "90")


def test_a_new_version_is_served_once_it_has_every_architecture(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    add(repository, "80")
    add(repository, "90")

    assert add(repository, "80", version=2).served == (1,)
    assert "version 1 serves on until version 2 has plans for 9.0 too" in caplog.text
    assert add(repository, "90", version=2).served == (1, 2)
    assert list(config(repository).version_policy.specific.versions) == [1, 2]


def test_of_complete_versions_the_newest_two_are_served(repository: ModelRepository) -> None:
    assert [add(repository, "80", version=version).served for version in (1, 2, 3)] == [(1,), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("first", "second", "precision", "missing"),
    [
        (["80"], "90", "fp16", "8.0"),
        (["80", "90"], "80", "int8", "9.0"),
        (["80", "90"], "120", "fp16", "8.0, 9.0"),
    ],
    ids=["another architecture", "another precision", "an architecture more"],
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


def test_a_new_version_may_have_more_architectures_than_the_one_before(repository: ModelRepository) -> None:
    add(repository, "80")
    add(repository, "80", version=2)

    assert add(repository, "90", version=2).served == (2,)
    assert config(repository).cc_model_filenames == {"8.0": "m-fp16-sm80.plan", "9.0": "m-fp16-sm90.plan"}


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
    assert "m_trt has no plan for 9.0 any more" in warning


def test_what_an_operator_set_stays_when_a_plan_is_added(
    repository: ModelRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    add_plan(repository, stored_plan(tmp_path, "80"), version=1, instances=4)
    path = repository.root / "m_trt/config.pbtxt"
    path.write_text(path.read_text().replace("dynamic_batching {", "dynamic_batching { priority_levels: 2"))
    edited = config(repository)

    add_plan(repository, stored_plan(tmp_path, "90", max_batch_size=16), version=1)

    kept = config(repository)
    assert kept.instance_group[0].count == 4
    assert kept.dynamic_batching.priority_levels == 2
    assert {warmup.name: warmup.batch_size for warmup in kept.model_warmup} == {
        "one_crop": 1,
        "full_batch": 16,
    }
    told, warned = caplog.messages
    assert warned == ("The largest batch on all GPUs is now 16, not 32: not every plan takes more.")
    assert "config.pbtxt of all versions of m_trt changes: - max_batch_size: 32, + max_batch_size: 16" in told
    edited.cc_model_filenames["9.0"] = "m-fp16-sm90.plan"
    edited.max_batch_size = edited.model_warmup[1].batch_size = 16
    assert kept == edited


def with_profiles(plan: StoredPlan, has_two: bool) -> StoredPlan:
    identity = replace(
        plan.manifest.identity,
        settings={"platform": plan.manifest.identity.platform, "small_batch_profile": has_two},
    )
    return replace(plan, manifest=replace(plan.manifest, identity=identity))


def test_that_the_profile_for_few_crops_is_lost_to_all_is_said(
    repository: ModelRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_plan(repository, with_profiles(stored_plan(tmp_path, "80"), True), version=1)
    add_plan(repository, with_profiles(stored_plan(tmp_path, "90"), False), version=1)

    (warned,) = caplog.messages
    assert warned == "The profile for small batches is no longer used on any GPU: not every plan has it."


def test_instances_are_changed_when_they_are_given(repository: ModelRepository, tmp_path: Path) -> None:
    for instances in (None, 3, 1):
        add_plan(repository, stored_plan(tmp_path, "80"), version=1, instances=instances)
        assert config(repository).instance_group[0].count == (instances or 2)


def test_a_configuration_that_triton_cannot_read_is_named(repository: ModelRepository) -> None:
    path = add(repository, "80").path.parent.parent / "config.pbtxt"
    path.write_text("max_batch_size: many")

    with pytest.raises(RepositoryError, match=rf"^{path} is not a Triton configuration"):
        add(repository, "90")


def test_a_version_in_another_precision_takes_over_when_it_is_complete(repository: ModelRepository) -> None:
    add(repository, "80")

    assert add(repository, "80", version=2, precision="int8").served == (2,)
    assert config(repository).cc_model_filenames == {"8.0": "m-int8-sm80.plan"}


def test_the_largest_batch_is_one_that_every_served_plan_takes(
    repository: ModelRepository, tmp_path: Path
) -> None:
    add_plan(repository, stored_plan(tmp_path, "80", max_batch_size=64), version=1)
    assert config(repository).max_batch_size == 64

    add_plan(repository, stored_plan(tmp_path, "90", max_batch_size=16), version=1)
    assert config(repository).max_batch_size == 16


def test_a_record_without_its_plan_does_not_count(repository: ModelRepository) -> None:
    path = add(repository, "80").path
    path.unlink()

    assert add(repository, "80").is_new


def test_a_plan_that_cannot_be_written_leaves_nothing(repository: ModelRepository, tmp_path: Path) -> None:
    plan = stored_plan(tmp_path, "80")

    with pytest.raises(RepositoryError, match="nothing was published"):
        add_plan(repository, replace(plan, path=tmp_path), version=1)
    with pytest.raises(PlanDamagedError, match="was removed meanwhile; compile again"):
        add_plan(repository, replace(plan, path=tmp_path / "gone.plan"), version=1)

    assert [path.name for path in repository.root.iterdir()] == [".lock"]
