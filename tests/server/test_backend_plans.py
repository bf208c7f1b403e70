from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from arcface_client.errors import ConfigError, DeploymentError, ManifestError, MissingExtraError
from arcface_server.backends.config import InstanceConfig
from arcface_server.backends.plans import load_plan, plan_for, record_of
from support.engines import identity, manifest

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


@pytest.mark.parametrize("error", ["ImportError", "OSError"])  # an extension module's, and that of ctypes
def test_a_tensorrt_without_its_libraries_is_told(
    error: str, config: InstanceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "libnvinfer.so.8: cannot open shared object file: No such file or directory"
    (tmp_path / "tensorrt.py").write_text(f"raise {error}({reason!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with pytest.raises(MissingExtraError, match=f"beside this server, but cannot be loaded: {reason}"):
        load_plan(MODEL, config)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The manifest of the plan for sm90."""
    path = tmp_path / "arcface_trt-3-sm90.manifest.json"
    path.write_text(manifest(of=identity(model="arcface", tensorrt_version="8.5.3.1", sm="90")).to_json())
    return path


@pytest.mark.usefixtures("record")
def test_the_manifest_lies_beside_the_models(config: InstanceConfig) -> None:
    published = record_of(config.version_folder / PLANS["9.0"])

    assert (published.identity.tensorrt_version, published.identity.sm) == ("8.5.3.1", "90")


@pytest.mark.parametrize("schema", [99, "1", None])
def test_a_record_of_another_schema_is_refused(config: InstanceConfig, record: Path, schema: object) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | {"schema_version": schema}))

    with pytest.raises(
        ManifestError, match=rf"^{record} has schema_version {schema!r}; expected 1\. Another"
    ):
        record_of(config.version_folder / PLANS["9.0"])


def test_a_plan_of_another_tensorrt_is_refused_with_both_versions(config: InstanceConfig) -> None:
    record = manifest(of=identity(tensorrt_version="8.5.3.1", sm="90"))
    plan = config.version_folder / PLANS["9.0"]
    record.check_loadable(plan, "8.5.3.1")
    with pytest.raises(DeploymentError, match=r"by TensorRT 8\.5\.3\.1, and TensorRT 11\.1\.0\.106 is"):
        record.check_loadable(plan, "11.1.0.106")


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}", '{"plan_sha256": "abc"}'])
def test_a_plan_of_which_nothing_is_known_is_not_run(
    config: InstanceConfig, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "arcface_trt-3-sm90.manifest.json").write_text(content)
    with pytest.raises(ManifestError, match=r"arcface_trt-3-sm90\.manifest\.json"):
        record_of(config.version_folder / PLANS["9.0"])
