"""docker-compose.yml without a container engine: its schema, its services, and its server's arguments."""

from __future__ import annotations

import http.client
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement

from arcface_client.settings import TensorRtSettings, variable
from arcface_server import LocalTriton
from arcface_server.installation import FLAGS
from support.tiny import write_tiny_repository

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
SERVE = ROOT / "deploy/kubernetes/base/serve.sh"
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


def test_one_variable_sets_the_release_of_nvidias_images() -> None:
    images = {name: service["image"] for name, service in services(TRITON_RELEASE="26.05").items()}
    assert (
        images
        | {
            "triton": "arcface-triton:26.05-py3",
            "cpu": "nvcr.io/nvidia/tritonserver:26.05-py3",
            "builder": "arcface-builder:26.05-py3",
            "perf": "nvcr.io/nvidia/tritonserver:26.05-py3-sdk",
        }
        == images
    )
    default = services()["triton"]["image"].partition(":")[2]
    for name, base in {"triton": "tritonserver", "builder": "tensorrt"}.items():
        build = services(TRITON_RELEASE="26.05")[name]["build"]
        assert build["args"] == {"TRITON_RELEASE": "26.05"}
        dockerfile = (ROOT / build["dockerfile"]).read_text()
        assert f"FROM nvcr.io/nvidia/{base}:${{TRITON_RELEASE}}-py3\n" in dockerfile
        assert re.findall(r"RELEASE=(\S+)\n", dockerfile) == [default.removesuffix("-py3")]


def test_the_documentation_has_the_release_and_the_variables() -> None:
    page = (ROOT / "docs/containers.md").read_text()
    release = services()["triton"]["image"].partition(":")[2].removesuffix("-py3")
    assert f"| `TRITON_RELEASE` | {release} |" in page
    assert f"\n| {release} | " in page
    for name in set(re.findall(r"\$\{(\w+)", FILE.read_text())) - {"HOME"}:
        assert f"`{name}`" in page, name


def test_only_the_server_and_the_builder_take_gpus() -> None:
    resources = {name: service["deploy"]["resources"] for name, service in services().items()}
    assert [name for name, each in resources.items() if "reservations" in each] == ["triton", "builder"]
    assert [name for name, service in services().items() if "profiles" not in service] == ["triton"]


@pytest.mark.parametrize("name", services())
def test_a_service_has_limits_an_unprivileged_user_and_no_port_for_other_machines(name: str) -> None:
    service = services()[name]
    assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "healthcheck" in service or service["restart"] == "no"


def test_a_secret_is_a_file_and_no_variable() -> None:
    secrets = yaml.safe_load(resolve(FILE.read_text()))["secrets"]
    used = [secret for service in services().values() for secret in service.get("secrets", ())]
    assert sorted(set(used)) == sorted(secrets)
    named = {key for service in services().values() for key in service.get("environment", ())}
    assert not [key for key in named if re.search("KEY|SECRET|TOKEN|PASSWORD$", key)]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_cannot_change_the_models(name: str) -> None:
    mounts = {mount["target"]: mount.get("read_only", False) for mount in services()[name]["volumes"]}
    assert mounts == {"/models": True, "/serve.sh": True} | ({"/cache": False} if name == "triton" else {})
    assert services()[name]["user"] == "1000:1000"


def test_every_slice_of_a_gpu_has_a_server_and_ports_of_its_own() -> None:
    slices = [
        dict(line.split("=") for line in path.read_text().splitlines() if not line.startswith("#"))
        for path in (ROOT / "deploy/slices").glob("*.env")
    ]
    servers = [services(**variables)["triton"] for variables in slices]
    assert len({port for server in servers for port in server["ports"]}) == 3 * len(slices) > 3
    assert len({variables["COMPOSE_PROJECT_NAME"] for variables in slices}) == len(slices)
    for variables, server in zip(slices, servers, strict=True):
        assert variables["CUDA_VISIBLE_DEVICES"].startswith("MIG-")
        assert "CUDA_VISIBLE_DEVICES" in server["environment"]


def test_perf_creates_its_shared_memory_as_the_servers_user() -> None:
    perf, triton = services()["perf"], services()["triton"]
    assert perf["ipc"] == "service:triton"
    assert triton["ipc"] == "shareable"
    assert perf["user"] == triton["user"]


def serve(folder: Path, key: str | None = None, **environment: str) -> list[str]:
    """The arguments that serve.sh gives to tritonserver."""
    program = folder / "tritonserver"
    program.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    program.chmod(0o755)
    if key is not None:
        (folder / "key").write_text(f"{key}\n")
    environment |= {"PATH": f"{folder}:/usr/bin:/bin", "TRITON_ADMIN_KEY_FILE": str(folder / "key")}
    done = subprocess.run([SERVE], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_server_has_the_flags_of_local_triton_and_those_of_the_user(tmp_path: Path) -> None:
    repository, *flags = serve(tmp_path, TRITON_FLAGS="--allow-client-shm=true --log-verbose=1")
    assert repository == "--model-repository=/models"
    assert tuple(flags[: len(FLAGS)]) == FLAGS
    assert flags[-2:] == ["--allow-client-shm=true", "--log-verbose=1"]
    for name in SERVERS:
        assert services()[name]["command"] == ["/bin/sh", "/serve.sh"]


def test_every_deployment_limits_a_request_over_http_and_has_further_flags() -> None:
    limit = "--http-max-input-size=16777216"
    for name in SERVERS:
        given = services(TRITON_FLAGS="--log-verbose=1")[name]["environment"]["TRITON_FLAGS"]
        assert given.split() == [limit, "--log-verbose=1"]
    for file in ("kubernetes/base/deployment.yaml", "kserve/runtime.yaml"):
        assert limit in (ROOT / "deploy" / file).read_text()


def test_without_a_key_file_the_restricted_apis_are_closed(tmp_path: Path) -> None:
    keys = {flag.partition("=")[2] for _ in range(2) for flag in serve(tmp_path) if "restricted" in flag}
    assert len(keys) == 2
    assert all(re.fullmatch("shared-memory,trace,logging:admin-key=[0-9a-f]{64}", key) for key in keys)


def test_the_server_of_the_file_serves_beside_a_plan_that_cannot_be_loaded(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_tiny_repository(repository)
    plan = repository / "tiny_trt"
    (plan / "1").mkdir(parents=True)
    (plan / "1" / "tiny-fp16-sm00.plan").write_bytes(b"no plan")
    (plan / "config.pbtxt").write_text(
        'name: "tiny_trt"\nplatform: "tensorrt_plan"\nmax_batch_size: 8\n'
        'cc_model_filenames { key: "0.0" value: "tiny-fp16-sm00.plan" }\n'
        'input [{ name: "image" data_type: TYPE_UINT8 dims: [112, 112, 3] }]\n'
        'output [{ name: "embedding" data_type: TYPE_FP32 dims: [512] }]\n'
    )
    _, *flags = serve(tmp_path, key="secret")
    health = urlsplit(services(HEALTH_MODEL="tiny_onnx")["cpu"]["healthcheck"]["test"][-1])
    with LocalTriton(repository, flags=flags) as server:
        connection = http.client.HTTPConnection(server.http_url)
        assert status(connection, health.path) == 200
        assert status(connection, "/v2/models/tiny_trt/ready") == 400
        for api in ("systemsharedmemory/status", "trace/setting", "logging"):
            assert status(connection, f"/v2/{api}") == 403
            assert status(connection, f"/v2/{api}", {"admin-key": "wrong"}) == 403
            assert status(connection, f"/v2/{api}", {"admin-key": "secret"}) == 200
        connection.close()


def status(
    connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str] = MappingProxyType({})
) -> int:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.parametrize(
    ("image", "extras"), [("builder", ("builder", "cli", "cudnn", "s3")), ("triton", ("cudnn",))]
)
def test_an_image_has_one_version_of_each_package_and_one_that_the_project_allows(
    image: str, extras: tuple[str, ...]
) -> None:
    lock = (ROOT / f"deploy/{image}-requirements.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\n]+)", lock, re.MULTILINE))
    wanted = map(Requirement, importlib.metadata.requires("arcface-triton") or ())
    for package in wanted:
        on_linux = [{"extra": extra, "sys_platform": "linux"} for extra in ("", *extras)]
        if package.marker and not any(map(package.marker.evaluate, on_linux)):
            continue
        if image == "triton" and package.name == "numpy":
            continue  # the image's own, which its Python backend was built with
        assert package.specifier.contains(pinned[package.name]), package
    assert f"deploy/{image}-requirements.txt" in (ROOT / f"deploy/{image}.Dockerfile").read_text()


def test_the_builder_gets_every_setting_of_tensorrt() -> None:
    sections = yaml.safe_load((ROOT / "config/pipeline/arcface_tensorrt.yaml").read_text())
    keys = [f"{section}.{key}" for section, values in sections.items() for key in values]
    assert {key.partition(".")[2] for key in keys} == set(TensorRtSettings.model_fields)
    assert {variable(key) for key in keys} <= services()["builder"]["environment"].keys()


def test_the_builder_can_write_only_models_and_plans() -> None:
    mounts = {mount["target"]: mount for mount in services(HOME="/home/me")["builder"]["volumes"]}
    assert mounts["/project"]["read_only"] is True
    assert services()["builder"]["working_dir"] == "/project"
    assert mounts["/cache"]["source"] == "/home/me/.cache/arcface-triton"
    assert {target for target, mount in mounts.items() if not mount.get("read_only")} == {
        "/project/model_repository",
        "/cache",
    }
