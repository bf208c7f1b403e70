from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcface_client.errors import ConfigError, DeploymentError
from arcface_server.backends.config import InstanceConfig
from arcface_server.backends.plans import PublishedPlan, load_plan, manifest_of, plan_for, published_plan

MODEL = "arcface_trt"
PLANS = {"8.0": "arcface-fp16-sm80.plan", "9.0": "arcface-fp16-sm90.plan"}


@pytest.fixture
def config(tmp_path: Path) -> InstanceConfig:
    version = tmp_path / MODEL / "3"
    version.mkdir(parents=True)
    (version / PLANS["9.0"]).write_bytes(b"ftrt")
    return InstanceConfig(version, "", "GPU", 0, cc_filenames=PLANS)


def test_the_plan_is_chosen_by_compute_capability(config: InstanceConfig) -> None:
    assert plan_for(MODEL, config, "9.0") == config.version_folder / PLANS["9.0"]


def test_a_gpu_without_a_plan_is_told_which_there_are(config: InstanceConfig) -> None:
    with pytest.raises(DeploymentError, match=r"compute capability 8\.0, 9\.0; this GPU has 8\.6\. Run"):
        plan_for(MODEL, config, "8.6")


def test_a_plan_that_is_named_but_missing_is_said(config: InstanceConfig) -> None:
    with pytest.raises(DeploymentError, match=r"sm80\.plan for compute capability 8\.0; it is missing"):
        plan_for(MODEL, config, "8.0")


def test_an_instance_on_the_cpu_is_refused(config: InstanceConfig) -> None:
    with pytest.raises(ConfigError, match="asks for KIND_CPU; a TensorRT plan runs on a GPU"):
        load_plan(MODEL, InstanceConfig(config.version_folder, "", "CPU", 0, cc_filenames=PLANS))


def test_the_manifest_lies_beside_the_models(config: InstanceConfig, tmp_path: Path) -> None:
    plan = config.version_folder / PLANS["9.0"]
    manifest = manifest_of(plan)
    assert manifest == tmp_path / "arcface_trt-3-sm90.manifest.json"
    manifest.write_text(json.dumps({"plan_sha256": "abc", "identity": {"tensorrt_version": "8.5.3.1"}}))
    assert published_plan(plan, manifest) == PublishedPlan("abc", "8.5.3.1")


def test_a_plan_of_another_tensorrt_is_refused_with_both_versions(config: InstanceConfig) -> None:
    published = PublishedPlan("abc", "8.5.3.1")
    plan = config.version_folder / PLANS["9.0"]
    published.check_loadable(plan, "8.5.3.1")
    with pytest.raises(DeploymentError, match=r"by TensorRT 8\.5\.3\.1, and this server has TensorRT 11\.1"):
        published.check_loadable(plan, "11.1.0.106")


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}", '{"plan_sha256": "abc"}'])
def test_a_plan_of_which_nothing_is_known_is_not_run(
    config: InstanceConfig, tmp_path: Path, content: str | None
) -> None:
    manifest = tmp_path / "manifest.json"
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(DeploymentError, match=r"Nothing is known of .*, so it is not run"):
        published_plan(config.version_folder / PLANS["9.0"], manifest)
