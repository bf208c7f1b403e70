from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.errors import DeploymentError, ManifestError, ManifestSchemaError
from arcface_client.models.manifest import ModelManifest, manifest_path
from arcface_client.models.plan_manifest import PlanManifest
from support.engines import KEY, manifest, plan_key

Content = dict[str, Any]


def altered(content: Content, path: str, value: Any) -> str:
    """A manifest's JSON with one field of another value, or (...) without it."""
    *folders, name = path.split(".")
    record = content
    for folder in folders:
        record = record[folder]
    if value is ...:
        del record[name]
    else:
        record[name] = value
    return json.dumps(content)


def test_a_model_manifest_is_read_as_it_was_written(built: Path, tmp_path: Path) -> None:
    written = build(OnnxFile(built / "source-0.onnx"), name="m", repository=tmp_path).manifest

    path = manifest_path(tmp_path, "m_onnx", 1)
    assert path == tmp_path / "m_onnx-1.manifest.json"
    assert ModelManifest.read(path).to_json() == written.to_json()
    assert written.contract["output"] == ("embedding", "FP32", (512,))


def test_an_older_model_manifest_does_not_say_what_was_assumed(models: Path) -> None:
    path = models / "small_onnx-1.manifest.json"
    content = json.loads(path.read_text())
    for name in ("assumed", "caller_mean", "caller_std"):
        del content["preprocessing"][name]
    path.write_text(json.dumps(content))
    preprocessing = ModelManifest.read(path).preprocessing
    assert (preprocessing.assumed, preprocessing.caller) == (None, None)


def test_a_plan_manifest_is_read_as_it_was_written() -> None:
    written = manifest(notes=("built with a workspace of 512 MB",), build_seconds=12.5, timing_cache="warm")
    assert PlanManifest.parse(written.to_json(), "it") == written


def test_a_manifest_of_an_older_or_a_newer_release_of_this_schema_is_read() -> None:
    content = json.loads(manifest().to_json())
    for name in ("build_seconds", "timing_cache", "notes", "refusals"):
        del content[name]
    for name in ("graph_sha256", "max_drift_cosine"):
        del content["identity"][name]
    assert PlanManifest.parse(json.dumps(content | {"signed_by": "me"}), "it") == manifest(
        of=plan_key(graph_sha256=None, max_drift_cosine=None)
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 3, r" has schema_version 3; expected 1\. Another version"),
        ("source", ..., r" lacks source\. Run `arcface-builder build` again"),
        ("source.sha256", "x", r" has source\.sha256 'x'; expected pattern"),
        ("golden.embeddings", "*", r" has golden\.embeddings '\*'; expected base64"),
        ("preprocessing.std", "1", r" has preprocessing\.std '1'; expected a valid"),
    ],
)
def test_a_wrong_field_of_a_model_manifest_is_one_line(
    field: str, value: Any, message: str, models: Path
) -> None:
    path = models / "small_onnx-1.manifest.json"
    path.write_text(altered(json.loads(path.read_text()), field, value))

    with pytest.raises(ManifestError, match=rf"^{path}{message}") as caught:
        ModelManifest.read(path)
    assert "\n" not in str(caught.value)


PLAN_FAULTS: dict[str, Any] = {
    "identity.model": "../arcface",
    "identity.tensorrt_version": "10.16.1.11/..",
    "identity.max_batch_size": 16,
    "created": "yesterday",
    "parity.largest_drift_cosine": 0.5,
    "parity.max_drift_cosine": float("nan"),
    "driver_version": ...,
}


@pytest.mark.parametrize(("field", "value"), PLAN_FAULTS.items(), ids=PLAN_FAULTS)
def test_a_wrong_field_of_a_plan_manifest_is_one_line(field: str, value: Any) -> None:
    name = field.partition(".")[0]
    with pytest.raises(ManifestError, match=f"^it.* {name}.*`arcface-builder compile`") as error:
        PlanManifest.parse(altered(json.loads(manifest().to_json()), field, value), "it")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schema", [99, "1", None])
def test_another_schema_is_told_from_damage(schema: object) -> None:
    content = json.loads(manifest().to_json()) | {"schema_version": schema, "identity": {}}
    with pytest.raises(ManifestSchemaError, match=f"^it has schema_version {schema!r}; expected 1"):
        PlanManifest.parse(json.dumps(content), "it")


@example(b"[" * 1_000_000)
@example(b"[]")
@example(b"{}")
@given(st.binary())
def test_bytes_that_are_not_a_manifest_are_refused(content: bytes) -> None:
    with pytest.raises(ManifestError, match=r"^it ") as caught:
        PlanManifest.parse(content, "it")
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^Cannot read the manifest .*gone.*Run `arcface-builder build`"):
        ModelManifest.read(tmp_path / "gone.json")


def test_a_key_names_the_plan_for_people_and_for_triton() -> None:
    assert KEY.filename == "arcface_r100-fp16-sm86.plan"
    assert (KEY.compute_capability, plan_key(sm="120").compute_capability) == ("8.6", "12.0")


def test_a_plan_of_another_tensorrt_is_refused_with_both_versions() -> None:
    plan = manifest(of=plan_key(tensorrt_version="8.5.3.1"))
    plan.check_loadable(Path("it.plan"), "8.5.3.1")
    with pytest.raises(DeploymentError, match=r"by TensorRT 8\.5\.3\.1, and TensorRT 11\.1\.0\.106 is"):
        plan.check_loadable(Path("it.plan"), "11.1.0.106")


def test_a_client_of_one_model_needs_no_pydantic() -> None:
    code = "import sys, arcface_client.triton.client; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
