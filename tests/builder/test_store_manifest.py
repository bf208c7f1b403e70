from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcface_builder.errors import PlanDamagedError, PlanManifestError
from arcface_builder.store.plan_header import plan_version
from arcface_builder.store.plan_manifest import check_plan, read_manifest
from support.engines import IDENTITY, identity, manifest, plan


def altered(path: str, value: Any) -> str:
    """A manifest's JSON with one field of another value, or without it."""
    content = json.loads(manifest().to_json())
    *folders, name = path.split(".")
    record = content
    for folder in folders:
        record = record[folder]
    if value is ...:
        del record[name]
    else:
        record[name] = value
    return json.dumps(content)


def test_a_manifest_is_read_as_it_was_written() -> None:
    written = manifest(notes=("fp16 drifted by 2e-3; this is the next higher precision",))
    assert read_manifest(written.to_json(), key=IDENTITY.key, place="cache") == written


LIES: dict[str, Any] = {
    "schema_version": 2,
    "identity.model": "arcface_r50",
    "identity.sm": "90",
    "identity.tensorrt_version": "11.1.0.106",
    "identity.precision": "half",
    "identity.max_batch_size": 16,
    "identity.settings": {"workspace_size_mb": 2048},
    "identity.settings.workspace_size_mb": [1024],
    "plan_sha256": "4C06",
    "plan_bytes": 0,
    "created": "yesterday",
    "gpu_name": None,
    "precisions_used": {"Half": "many"},
    "precisions_used.Half": True,
    "parity": "passed",
    "parity.largest_drift_cosine": 0.5,
    "parity.max_drift_cosine": float("nan"),
    "parity.crops": 2.5,
    "notes": "none",
    "driver_version": ...,
    "parity.compared_with": ...,
}


@pytest.mark.parametrize(("path", "value"), LIES.items(), ids=LIES)
def test_a_manifest_that_cannot_be_true_is_refused_in_one_line(path: str, value: Any) -> None:
    with pytest.raises(PlanManifestError) as caught:
        read_manifest(altered(path, value), key=IDENTITY.key, place="cache")
    assert IDENTITY.key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_drift_below_nothing_cannot_be_true() -> None:
    with pytest.raises(
        PlanManifestError, match=r"largest_drift_cosine is -5\.0; expected greater than or equal to 0"
    ):
        read_manifest(altered("parity.largest_drift_cosine", -5.0), key=IDENTITY.key, place="cache")


def test_the_message_says_which_field_is_wrong_and_how() -> None:
    with pytest.raises(PlanManifestError, match=r"parity\.crops is 2\.5; expected a whole number\. Run"):
        read_manifest(altered("parity.crops", 2.5), key=IDENTITY.key, place="cache")
    with pytest.raises(PlanManifestError, match=r"lacks plan_sha256\. Run"):
        content = json.loads(manifest().to_json())
        content["sha"] = content.pop("plan_sha256")
        read_manifest(json.dumps(content), key=IDENTITY.key, place="cache")


@example(b"[" * 1_000_000)
@given(st.binary())
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    with pytest.raises(PlanManifestError):
        read_manifest(content, key=IDENTITY.key, place="cache")


def test_the_header_says_which_tensorrt_wrote_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(plan(version="11.1.0.106"))
    assert plan_version(path) == (11, 1, 0, 106)
    assert str(plan_version(plan())) == "10.16.1.11"


def test_a_plan_of_8_5_or_with_a_header_of_another_layout_does_not_say_its_version() -> None:
    assert plan_version(plan(magic=b"ptrt")) is None
    assert plan_version(b"ftrt\1" + plan()[5:]) is None


def test_a_real_engine_says_the_version_that_built_it(trt: ModuleType) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    tensor = network.add_input("x", trt.float32, (1, 4))
    network.mark_output(network.add_unary(tensor, trt.UnaryOperation.ABS).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    engine = bytes(builder.build_serialized_network(network, config))

    version = plan_version(engine)

    assert version is not None
    assert version.may_be(trt.__version__)
    assert not version.may_be("10.16.1.11")


@pytest.mark.parametrize("content", [b"", b"ftrt", b"onnx" * 20, plan()[:27]], ids=repr)
def test_what_is_no_plan_is_refused(content: bytes) -> None:
    with pytest.raises(PlanDamagedError, match="expected"):
        plan_version(content)


def test_a_manifest_that_names_another_tensorrt_than_its_plan_is_refused() -> None:
    content = plan(version="10.16.1.11")
    lie = manifest(content, identity(tensorrt_version="11.1.0.106"))
    with pytest.raises(PlanManifestError, match=r"says TensorRT 11\.1\.0\.106, the plan's own header 10\.16"):
        check_plan(content, lie, where="plan")


def test_a_build_number_over_255_is_compared_by_its_low_byte() -> None:
    of = identity(tensorrt_version="12.0.0.300")
    content = plan(version="12.0.0.300")
    check_plan(content, manifest(content, of), where="plan")


@pytest.mark.parametrize(("version", "header"), [("10.0.0b6", "10.0.0.6"), ("8.6.1.post1", "8.6.1.6")])
def test_a_version_that_is_not_only_numbers_is_compared_by_those_it_has(version: str, header: str) -> None:
    content = plan(version=header)
    check_plan(content, manifest(content, identity(tensorrt_version=version)), where="plan")
    with pytest.raises(PlanManifestError, match="the plan's own header"):
        check_plan(content, manifest(content, identity(tensorrt_version="10.0.1b6")), where="plan")


@pytest.mark.parametrize(
    ("content", "difference"),
    [(plan(1999), "has 1,999 bytes; its manifest says 2,000"), (plan(seed=1), "has SHA-256 ")],
    ids=["size", "hash"],
)
def test_other_bytes_than_the_manifest_describes_are_refused(content: bytes, difference: str) -> None:
    with pytest.raises(PlanDamagedError, match=difference):
        check_plan(content, manifest(), where="the plan")
