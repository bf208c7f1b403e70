from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from arcface_client.errors import ConfigError, DeploymentError, ManifestError, MissingExtraError
from arcface_server.backends.config import InstanceConfig, read_instance_config
from arcface_server.backends.plans import load_plan, plan_for, plan_manifest
from support.engines import manifest, plan_key

MODEL = "arcface_trt"
PLANS = {"8.0": "arcface-fp16-sm80.plan", "9.0": "arcface-fp16-sm90.plan"}


@pytest.fixture
def config(tmp_path: Path) -> InstanceConfig:
    version = tmp_path / MODEL / "3"
    version.mkdir(parents=True)
    (version / PLANS["9.0"]).write_bytes(b"ftrt")
    return InstanceConfig(version, "", "GPU", 0, cc_filenames=PLANS)


def test_the_configuration_that_triton_passes_names_the_plans() -> None:
    model_config = {
        "max_batch_size": 32,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["112", "112", "3"]}],
        "output": [{"name": "embedding", "data_type": "TYPE_FP32", "dims": ["512"]}],
        "default_model_filename": "other.plan",
        "cc_model_filenames": PLANS,
    }
    arguments = {
        "model_config": json.dumps(model_config),
        "model_instance_device_id": "1",
        "model_instance_kind": "GPU",
        "model_name": MODEL,
        "model_repository": "/models/arcface_trt",
        "model_version": "3",
    }
    folder = Path("/models/arcface_trt/3")
    expected = InstanceConfig(folder, "other.plan", "GPU", 1, cc_filenames=PLANS, max_batch_size=32)
    assert read_instance_config(arguments) == expected


def test_the_plan_is_chosen_by_compute_capability(config: InstanceConfig) -> None:
    assert plan_for(MODEL, config, "9.0") == config.version_folder / PLANS["9.0"]
    with pytest.raises(DeploymentError, match=r"compute capability 8\.0, 9\.0; this GPU has 8\.6\. Run"):
        plan_for(MODEL, config, "8.6")


def test_an_instance_on_the_cpu_is_refused(config: InstanceConfig) -> None:
    with pytest.raises(ConfigError, match="asks for KIND_CPU; a TensorRT plan runs on a GPU"):
        load_plan(MODEL, InstanceConfig(config.version_folder, "", "CPU", 0, cc_filenames=PLANS))


@pytest.mark.parametrize("error", ["ImportError", "OSError"])  # of an extension module, and of ctypes
def test_a_tensorrt_without_its_libraries_is_reported(
    error: str, config: InstanceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "libnvinfer.so.8: cannot open shared object file: No such file or directory"
    (tmp_path / "tensorrt.py").write_text(f"raise {error}({reason!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with pytest.raises(MissingExtraError, match=f"on this server .*installed but cannot be loaded: {reason}"):
        load_plan(MODEL, config)


def test_the_manifest_in_the_repositorys_root_is_read(config: InstanceConfig, tmp_path: Path) -> None:
    path = tmp_path / "arcface_trt-3-sm90.manifest.json"
    path.write_text(manifest(of=plan_key(model="arcface", sm="90")).to_json())
    assert plan_manifest(config.version_folder / PLANS["9.0"]).identity.sm == "90"


@pytest.mark.parametrize("content", [None, "no json"])
def test_a_plan_without_a_readable_manifest_is_not_run(
    config: InstanceConfig, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "arcface_trt-3-sm90.manifest.json").write_text(content)
    with pytest.raises(ManifestError, match=r"arcface_trt-3-sm90\.manifest\.json"):
        plan_manifest(config.version_folder / PLANS["9.0"])
