"""Plans that no server can load together."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_builder.errors import RepositoryError
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.publish_plan import AddedPlan, add_plan, add_plans
from support.engines import stored_plan


def add(repository: ModelRepository, sm: str, version: int, **of: Any) -> AddedPlan:
    return add_plan(
        repository, stored_plan(repository.root.parent, sm, version=version, **of), version=version
    )


def served_versions(repository: ModelRepository) -> list[int]:
    text = (repository.root / "m_trt/config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return list(config.version_policy.specific.versions)


@pytest.fixture
def repository(tmp_path_factory: pytest.TempPathFactory) -> ModelRepository:
    return ModelRepository(tmp_path_factory.mktemp("of") / "models")


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (
            {"tensorrt_version": "11.2.0.5"},
            "TensorRT 11.1.0.106 for linux-x86_64, m-fp16-sm90.plan by TensorRT 11.2.0.5 for linux-x86_64",
        ),
        ({"platform": "linux-aarch64"}, "m-fp16-sm90.plan by TensorRT 11.1.0.106 for linux-aarch64"),
    ],
)
def test_a_version_is_by_one_tensorrt_and_for_one_platform(
    of: dict[str, Any], said: str, repository: ModelRepository
) -> None:
    add(repository, "80", 1)

    with pytest.raises(RepositoryError) as caught:
        add(repository, "90", 1, **of)

    assert said in str(caught.value)
    assert not (repository.root / "m_trt-1-sm90.manifest.json").exists()
    folder = repository.root.parent
    with pytest.raises(RepositoryError, match="no server loads both"):
        add_plans(
            repository, [stored_plan(folder, "80"), stored_plan(folder, "90", version=2, **of)], version=2
        )
    assert not (repository.root / "m_trt/2").exists()


def test_after_a_change_of_tensorrt_only_its_own_versions_are_served(repository: ModelRepository) -> None:
    for version in (1, 2):
        add(repository, "80", version)
        add(repository, "90", version)
    assert served_versions(repository) == [1, 2]

    newer = {"tensorrt_version": "11.2.0.5"}
    assert add(repository, "80", 3, **newer).served == (1, 2)  # until it has every architecture
    assert add(repository, "90", 3, **newer).served == (3,)
    assert served_versions(repository) == [3]


def test_the_versions_to_remove_are_all_those_that_hold_an_architecture(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        add(repository, "86", version)
        add(repository, "89", version)
    caplog.clear()

    add(repository, "86", 3)

    (warning,) = caplog.messages
    assert "version 2 serves on until version 3 has plans for 8.9 too; or remove version 1, 2" in warning


def test_missing_architectures_are_named_in_their_order(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    for sm in ("89", "120", "75", "86"):
        add(repository, sm, 1)
    caplog.clear()

    add(repository, "86", 2)

    (warning,) = caplog.messages
    assert "has plans for 7.5, 8.9, 12.0 too" in warning
