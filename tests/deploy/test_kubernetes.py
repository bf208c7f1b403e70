"""deploy/kubernetes and deploy/kserve: what the overlays make, by the schemas of Kubernetes and KServe."""

from __future__ import annotations

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
FOLDERS = sorted(
    str(path.parent.relative_to(KUBERNETES))
    for path in KUBERNETES.rglob("kustomization.yaml")
    if path.parent.name != "base" and path.parent.parent.name != "mixed-fleet"  # which has those in it
)
RELEASE = "26.11-py3"

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which has kustomize, is missing"
)


@cache
def _built(folder: str) -> str:
    done = subprocess.run(["kubectl", "kustomize", KUBERNETES / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a field that kustomize no longer likes"
    return done.stdout


def resources(folder: str, *kinds: str) -> list[dict[str, Any]]:
    found = list(yaml.safe_load_all(_built(folder)))
    return [each for each in found if not kinds or each["kind"] in kinds]


def pods(folder: str) -> list[dict[str, Any]]:
    return [each["spec"]["template"] for each in resources(folder, "Deployment", "Job")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_resource_is_valid_by_the_schemas_of_kubernetes(folder: str) -> None:
    for each in resources(folder):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_the_schema_finds_a_mistake() -> None:
    (deployment,) = resources("overlays/gpu", "Deployment")
    broken = copy.deepcopy(deployment)
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_resource_names_is_there(folder: str) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in resources(folder)}
    names |= {(each["kind"], each["metadata"]["name"]) for each in resources("jobs/build")}
    labels = [pod["metadata"]["labels"] for pod in pods(folder)]
    for each in resources(folder, "Service", "PodDisruptionBudget"):
        selector = each["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= found.items() for found in labels), each["metadata"]["name"]
    for each in resources(folder, "HorizontalPodAutoscaler"):
        target = each["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in names
    for pod in pods(folder):
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_pod_is_unprivileged_and_a_server_cannot_write_the_models(folder: str) -> None:
    for pod in pods(folder):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            mounts = {mount["mountPath"]: mount.get("readOnly") for mount in container["volumeMounts"]}
            assert mounts.get("/models", True) is True
            assert container["image"].endswith(f":{RELEASE}")


def test_each_pool_of_a_mixed_fleet_has_servers_of_its_own_and_its_kind_of_gpu() -> None:
    deployments = resources("overlays/mixed-fleet", "Deployment")
    assert len({str(each["spec"]["selector"]) for each in deployments}) == len(deployments) == 4
    products = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"].get("nodeSelector") for each in deployments
    }
    assert products.pop("arcface-triton-cpu") is None
    assert len({str(product) for product in products.values()}) == 3
    (behind,) = (
        each
        for each in resources("overlays/mixed-fleet", "Service")
        if each["metadata"]["name"] == "arcface-triton-gpu"
    )
    reached = [
        each["metadata"]["name"]
        for each in deployments
        if behind["spec"]["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]
    assert sorted(reached) == sorted(products)
    compiled = [pod["spec"]["nodeSelector"] for pod in pods("jobs/mixed-fleet")]
    architectures = [product for name, product in products.items() if "-mig" not in name]
    assert sorted(map(str, compiled)) == sorted(map(str, architectures))


def test_models_of_a_bucket_are_pulled_to_where_the_server_reads_them(tmp_path: Path) -> None:
    (pod,) = pods("overlays/bucket")
    (pull,), (triton,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    program = tmp_path / "arcface-builder"
    program.write_text('#!/bin/sh\nmkdir -p "$6" && echo "$@"\n')
    program.chmod(0o755)
    command = [word.replace("/node", f"{tmp_path}/node") for word in (*pull["command"], *pull["args"])]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    place = f"--repository {tmp_path}/node/models"
    assert done.stdout == f"pull s3://models/faces --name arcface_r100 {place}\n"
    (node,) = (mount["name"] for mount in pull["volumeMounts"] if mount["mountPath"] == "/node")
    mounts = {mount["mountPath"]: mount for mount in triton["volumeMounts"] if mount["name"] == node}
    assert {path: mount["subPath"] for path, mount in mounts.items()} == {
        "/models": "models",
        "/cache": "cache",
    }
    assert all((tmp_path / "node" / mount["subPath"]).is_dir() for mount in mounts.values())
    (cache,) = (each["value"] for each in triton["env"] if each["name"] == "ARCFACE_CACHE_DIR")
    assert cache == "/cache"


def test_a_server_on_a_gpu_has_one_and_a_server_on_a_processor_none() -> None:
    for folder, gpus in {
        "overlays/gpu": "1",
        "overlays/cpu": None,
        "jobs/compile": "1",
        "jobs/build": None,
    }.items():
        (pod,) = pods(folder)
        assert pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus


def test_the_release_is_that_of_compose() -> None:
    assert (
        f"TRITON_RELEASE:-{RELEASE.removesuffix('-py3')}}}"
        in (DEPLOY.parent / "docker-compose.yml").read_text()
    )
    assert f":{RELEASE}" in (DEPLOY / "kserve/runtime.yaml").read_text()


@pytest.mark.parametrize(
    ("file", "model"), [("runtime", "V1alpha1ServingRuntime"), ("service", "V1beta1InferenceService")]
)
def test_kserve_reads_every_field(file: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kserve = pytest.importorskip("kserve", reason="needs KServe's SDK: make test-kserve")
    client = pytest.importorskip("kubernetes.client")
    written = yaml.safe_load((DEPLOY / f"kserve/{file}.yaml").read_text())
    for name in dir(kserve):  # Kubernetes's reader looks for the types of fields among its own
        if name.startswith("V1"):
            monkeypatch.setattr(client.models, name, getattr(kserve, name), raising=False)
    api = client.ApiClient()
    # It leaves out what it does not know.
    read = api._ApiClient__deserialize(written, getattr(kserve, model))
    assert common(written, api.sanitize_for_serialization(read)) == written


def common(written: Any, read: Any) -> Any:
    """What was read of what is written, without the defaults."""
    if isinstance(written, dict):
        return {key: common(written[key], read[key]) for key in written.keys() & read.keys()}
    if isinstance(written, list):
        return [common(*pair) for pair in zip(written, read, strict=True)]
    return read


def test_the_runtime_and_the_service_of_kserve_fit() -> None:
    runtime, service = (
        yaml.safe_load((DEPLOY / f"kserve/{name}.yaml").read_text()) for name in ("runtime", "service")
    )
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (container,) = runtime["spec"]["containers"]
    assert container["command"] == ["serve.sh"]
    assert "serve.sh /usr/local/bin/" in (DEPLOY / "triton.Dockerfile").read_text()
