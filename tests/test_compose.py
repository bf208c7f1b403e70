"""docker-compose.yml without a container engine: its schema, its services, and its server's arguments."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from arcface_client.settings import TensorRtSettings, variable
from arcface_server import LocalTriton
from arcface_server.installation import FLAGS
from support.tiny import write_tiny_repository

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
SERVERS = ("triton", "cpu")


def resolve(text: str, **variables: str) -> str:
    """Replace variables by their values or defaults, innermost first, as compose does."""
    variable = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^${}]*))?\}")
    while variable.search(text):
        text = variable.sub(lambda match: variables.get(match[1]) or match[2] or "", text)
    return text.replace("$$", "$")


def services(**variables: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(resolve(FILE.read_text(), **variables))["services"]
    return found


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_valid_by_the_compose_specification() -> None:
    done = check_schema(FILE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("restart: ", "restarts: "), ("read_only: true", "read_only: [perhaps]"), ("interval: 5s", "every: 5s")],
)
def test_the_schema_finds_a_mistake(right: str, wrong: str, tmp_path: Path) -> None:
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(FILE.read_text().replace(right, wrong))
    assert check_schema(broken).returncode == 1


def test_one_variable_sets_the_release_of_every_image() -> None:
    images = {name: service["image"] for name, service in services(TRITON_RELEASE="26.05").items()}
    assert images == {
        "triton": "arcface-triton:26.05-py3",
        "cpu": "nvcr.io/nvidia/tritonserver:26.05-py3",
        "builder": "nvcr.io/nvidia/tensorrt:26.05-py3",
        "perf": "nvcr.io/nvidia/tritonserver:26.05-py3-sdk",
    }
    build = services(TRITON_RELEASE="26.05")["triton"]["build"]
    assert build["args"] == {"TRITON_RELEASE": "26.05"}
    dockerfile = (ROOT / build["dockerfile"]).read_text()
    assert "FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3\n" in dockerfile
    defaults = {re.search(r":(\d\d\.\d\d)-py3", service["image"]) for service in services().values()}
    assert {match and match[1] for match in defaults} == set(re.findall(r"RELEASE=(\S+)\n", dockerfile))


def test_the_documentation_has_the_release_and_the_variables() -> None:
    page = (ROOT / "docs/containers.md").read_text()
    release = services()["triton"]["image"].partition(":")[2].removesuffix("-py3")
    assert f"| `TRITON_RELEASE` | {release} |" in page
    assert f"\n| {release} | " in page
    for name in set(re.findall(r"\$\{(\w+)", FILE.read_text())) - {"HOME"}:
        assert f"`{name}`" in page, name


def test_only_the_server_and_the_builder_take_gpus() -> None:
    assert [name for name, service in services().items() if "deploy" in service] == ["triton", "builder"]
    assert [name for name, service in services().items() if "profiles" not in service] == ["triton"]


@pytest.mark.parametrize("name", SERVERS)
def test_only_this_machine_reaches_a_server_and_it_cannot_change_the_models(name: str) -> None:
    service = services()[name]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    mount, *cache = service["volumes"]
    assert [one["target"] for one in cache] == (["/cache"] if name == "triton" else [])
    assert (mount["target"], mount["read_only"]) == ("/models", True)
    assert service["user"] == "1000:1000"


def test_perf_creates_its_shared_memory_as_the_servers_user() -> None:
    perf, triton = services()["perf"], services()["triton"]
    assert perf["ipc"] == "service:triton"
    assert triton["ipc"] == "shareable"
    assert perf["user"] == triton["user"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_the_flags_of_local_triton(name: str) -> None:
    program, repository, *flags = services()[name]["command"].split()
    assert (program, repository) == ("tritonserver", "--model-repository=/models")
    assert tuple(flags) == FLAGS
    assert services(TRITON_FLAGS="--allow-client-shm=true")[name]["command"].split()[-1].endswith("shm=true")


def test_with_these_flags_a_plan_that_cannot_be_loaded_does_not_stop_the_onnx_model(tmp_path: Path) -> None:
    write_tiny_repository(tmp_path)
    plan = tmp_path / "tiny_trt"
    (plan / "1").mkdir(parents=True)
    (plan / "1" / "tiny-fp16-sm00.plan").write_bytes(b"no plan")
    (plan / "config.pbtxt").write_text(
        'name: "tiny_trt"\nplatform: "tensorrt_plan"\nmax_batch_size: 8\n'
        'cc_model_filenames { key: "0.0" value: "tiny-fp16-sm00.plan" }\n'
        'input [{ name: "image" data_type: TYPE_UINT8 dims: [112, 112, 3] }]\n'
        'output [{ name: "embedding" data_type: TYPE_FP32 dims: [512] }]\n'
    )
    service = services(HEALTH_MODEL="tiny_onnx")["cpu"]
    flags = service["command"].split()[2:]
    health = urlsplit(service["healthcheck"]["test"][-1])
    with LocalTriton(tmp_path, flags=flags) as server:
        connection = http.client.HTTPConnection(server.http_url)
        assert status(connection, health.path) == 200
        assert status(connection, "/v2/models/tiny_onnx/ready") == 200
        assert status(connection, "/v2/models/tiny_trt/ready") == 400
        connection.close()


def status(connection: http.client.HTTPConnection, path: str) -> int:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_the_builder_installs_the_project_and_passes_its_arguments_on(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\n')
    python.chmod(0o755)
    shell, *script = services()["builder"]["entrypoint"]

    done = subprocess.run(
        [shell, *script, "build", "--name", "two words"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    words = done.stdout.split("\n")
    assert words[:3] == ["[-m]", "[pip]", "[install]"]
    assert "[/project[builder,cli,cudnn,s3,tensorrt]]" in words
    assert words[-6:-1] == ["[-m]", "[arcface_builder]", "[build]", "[--name]", "[two words]"]


def test_the_builder_gets_every_setting_of_tensorrt() -> None:
    sections = yaml.safe_load((ROOT / "config/pipeline/arcface_tensorrt.yaml").read_text())
    keys = [f"{section}.{key}" for section, values in sections.items() for key in values]
    assert {key.partition(".")[2] for key in keys} == set(TensorRtSettings.model_fields)
    assert {variable(key) for key in keys} <= services()["builder"]["environment"].keys()


def test_the_builder_can_write_only_models_and_plans() -> None:
    mounts = {mount["target"]: mount for mount in services(HOME="/home/me")["builder"]["volumes"]}
    assert mounts["/project"]["read_only"] is True
    assert mounts["/cache"]["source"] == "/home/me/.cache/arcface-triton"
    assert {target for target, mount in mounts.items() if not mount.get("read_only")} == {
        "/project/model_repository",
        "/cache",
    }
