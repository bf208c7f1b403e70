from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from arcface_builder.source.load import OnnxFile
from arcface_client import get_embedding_backend
from arcface_client.backends.factory import make_backend
from arcface_client.backends.local import provider_order
from arcface_client.contract import Crops
from arcface_client.errors import (
    ArcFaceError,
    ConfigError,
    DeploymentError,
    InputError,
    MissingExtraError,
    NoCandidateError,
)
from arcface_client.runtimes.base import COREML, CPU, CUDA, read_device
from arcface_client.settings import EmbeddingSettings, PipelineSettings
from arcface_server import LocalTriton
from photograph import face_crops
from support.engines import manifest, plan_key

from .conftest import Make


@pytest.mark.parametrize("backend_type", ["insightface", "onnxruntime"])
def test_it_embeds_as_the_source_model_does(backend_type: str, make: Make, built: Path) -> None:
    crops = face_crops()
    expected = OnnxFile(built / "source-0.onnx").load().embed(crops)

    with make(backend_type) as embedder:
        embedder.ensure_ready()
        embeddings, served = embedder.encode(crops, return_source=True)

    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert [source.backend for source in served.sources] == [backend_type]
    assert not served.fell_back


def test_diagnostics_say_what_runs(make: Make, built: Path) -> None:
    with make("onnxruntime") as embedder:
        embedder.ensure_ready()
        embedder.encode(face_crops())
        said = embedder.diagnostics().to_dict()

    assert json.loads(json.dumps(said)) == {**said, "candidates": list(said["candidates"])}
    drift = said["validation"].pop("drift_vs_reference")
    assert 0 <= drift < 1e-9
    assert said["throughput_fps"] > 0
    assert said["latency_ms"] > 0
    assert {name: said[name] for name in ("backend", "model", "version", "engine_path", "precision")} == {
        "backend": "onnxruntime",
        "model": "small_onnx",
        "version": 1,
        "engine_path": str(built / "models/small_onnx/1/model.onnx"),
        "precision": "fp32",
    }
    assert (said["provider"], said["batch_size"], said["embedding_dim"]) == ("CPUExecutionProvider", 32, 512)
    assert said["validation"] == {"reference": "manifest", "regression_test": "passed"}
    assert (said["sm"], said["vram_mb"]) == (None, None)


@pytest.mark.parametrize("backend_type", ["insightface", "onnxruntime"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device": "cuda:0"}, "lacks CUDAExecutionProvider; it has .*CPUExecutionProvider"),
        (
            {"embedding_providers": ["AzureExecutionProvider"]},
            r"AzureExecutionProvider took 0 of the model's \d+ nodes; ONNX Runtime ran the others",
        ),
    ],
    ids=["a provider that is not installed", "a provider that quietly leaves it to the CPU"],
)
def test_a_fallback_to_the_cpu_is_never_silent(
    backend_type: str,
    settings: dict[str, Any],
    reason: str,
    make: Make,
    crops: Crops,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), make(backend_type, **settings) as embedder:
        embeddings, served = embedder.encode(crops[:3], return_source=True)
        diagnostics = embedder.diagnostics()
    with make(backend_type) as plain:
        np.testing.assert_allclose(embeddings, plain.encode(crops[:3]), atol=1e-6)

    assert served.fell_back
    assert diagnostics.provider == "CPUExecutionProvider"
    assert [report.state for report in diagnostics.candidates] == ["refused", "serving"]
    assert " serves. " in caplog.text
    with pytest.raises(DeploymentError, match=reason):
        make(backend_type, allow_cpu_fallback=False, **settings).ensure_ready()


@pytest.mark.parametrize(
    ("device", "allow_cpu_fallback", "expected"),
    [
        ("auto", True, [CUDA, COREML, CPU]),
        ("auto", False, [CUDA, COREML]),
        ("cpu", True, [CPU]),
        ("cuda:0", True, [CUDA, CPU]),
        ("cuda:0", False, [CUDA]),
    ],
)
def test_the_cpu_stands_in_for_another_provider_only_if_allowed(
    device: str, allow_cpu_fallback: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [COREML, CUDA, CPU])
    order = provider_order(read_device(device), (), allow_cpu_fallback=allow_cpu_fallback)
    assert order == expected


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (None, r"package tensorrt: pip install 'arcface-triton\[tensorrt\]'"),
        (
            "import ctypes; ctypes.CDLL('libnvinfer.so.8')",
            r"installed but cannot be loaded: libnvinfer\.so\.8",
        ),
    ],
    ids=["missing", "lacks a library that it loads"],
)
def test_a_tensorrt_that_cannot_be_used_is_explained(
    statement: str | None, reason: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if statement is not None:
        (tmp_path / "tensorrt.py").write_text(statement)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(NoCandidateError, match=reason) as caught:
        make("tensorrt", allow_cpu_fallback=False).ensure_ready()
    assert isinstance(caught.value.reasons["small_trt on cuda:0"], MissingExtraError)
    monkeypatch.setenv("ARCFACE_TENSORRT_ENABLED", "true")
    with pytest.raises(NoCandidateError, match=reason):
        make("tensorrt").ensure_ready()


def test_tensorrt_that_is_switched_off_gives_way_to_onnxruntime(
    make: Make, crops: Crops, tmp_path: Path
) -> None:
    settings = tmp_path / "trt.yaml"
    settings.write_text("arcface_tensorrt: {enabled: false}")

    with make("tensorrt", tensorrt_config=settings) as embedder:
        _, served = embedder.encode(crops[:1], return_source=True)
    assert [source.backend for source in served.sources] == ["onnxruntime"]
    assert served.refusals[0].candidate == "small_trt"
    assert served.refusals[0].reason.startswith("TensorRT is switched off: arcface_tensorrt.enabled is false")

    with pytest.raises(DeploymentError, match="TensorRT is switched off"):
        make("tensorrt", tensorrt_config=settings, allow_cpu_fallback=False).ensure_ready()


def test_making_a_backend_in_this_process_imports_nothing_heavy() -> None:
    heavy = ("grpc", "tritonclient", "onnx", "onnxruntime", "insightface", "cv2", "tensorrt", "cuda")
    code = (
        "import sys; from arcface_client import get_embedding_backend; get_embedding_backend('pytorch');"
        "get_embedding_backend('onnxruntime'); get_embedding_backend('tensorrt');"
        f"print(*set({heavy}) & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def stand_in_for_a_plan(models: Path) -> None:
    """Add small_trt, the ONNX model by another name, with the record of a plan."""
    shutil.copytree(models / "small_onnx", models / "small_trt")
    config = models / "small_trt" / "config.pbtxt"
    config.write_text(config.read_text().replace("small_onnx", "small_trt"))
    sha256 = hashlib.sha256((models / "small_onnx" / "1" / "model.onnx").read_bytes()).hexdigest()
    record = manifest(of=plan_key(model="small", onnx_sha256=sha256, sm="90"), plan_sha256=sha256)
    (models / "small_trt-1-sm90.manifest.json").write_text(record.to_json())


def test_a_server_is_checked_against_manifests_and_this_process_stands_in_when_it_is_gone(
    make: Make, models: Path, crops: Crops
) -> None:
    stand_in_for_a_plan(models)
    settings = {"embedding_model_repository": models, "triton_recheck_s": 0.2}
    with LocalTriton(models) as server:
        embedder = make("triton", triton_url=server.grpc_url, **settings)
        embedder.ensure_ready()
        by_server, served = embedder.encode(crops, return_source=True)
        diagnostics = embedder.diagnostics()
    # An upgrade since, to another release of the same source model.
    (models / "small_onnx/1").rename(models / "small_onnx/2")
    (models / "small_onnx-1.manifest.json").rename(models / "small_onnx-2.manifest.json")
    with embedder:
        by_process, fallen_back = embedder.encode(crops, return_source=True)

    assert [(source.backend, source.where) for source in served.sources] == [("triton", server.grpc_url)]
    assert (diagnostics.validation.reference, diagnostics.validation.regression_test) == (
        "manifest",
        "passed",
    )
    assert (diagnostics.model, diagnostics.precision, diagnostics.sm) == ("small_trt", "fp16", "90")
    assert [(one.backend, one.version, one.where) for one in fallen_back.sources] == [
        ("onnxruntime", 2, "this process")
    ]
    assert fallen_back.fell_back
    np.testing.assert_allclose(by_process, by_server, atol=1e-6)


def test_required_plans_are_not_replaced_by_their_sibling(
    make: Make, triton: LocalTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"triton_url": triton.grpc_url, "embedding_model": "tiny"}
    with make("triton", **settings) as embedder:
        embedder.ensure_ready()

    monkeypatch.setenv("ARCFACE_TENSORRT_ENABLED", "true")
    with make("triton", **settings) as embedder, pytest.raises(ArcFaceError, match="tiny_trt"):
        embedder.ensure_ready()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend_type": "torch"},
            "backend_type is 'torch'; expected one of insightface, cudnn, tensorrt, openvino",
        ),
        ({"device": "mps"}, "device is 'mps'; expected 'cpu'"),
        ({"triton_ulr": "x"}, r"There is no setting 'triton_ulr'; did you mean triton_url\?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_embedding_backend(**arguments)


def test_a_setting_that_is_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'onnxruntime' and embedding_backend 'triton'; give one"):
        get_embedding_backend("onnxruntime", embedding_backend="triton")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_max_drift_cosine": "small"}, "max_drift_cosine is 'small'; expected a valid number"),
        ({"config": "/nowhere.yaml"}, r"Cannot read the configuration file /nowhere\.yaml"),
        ({"backend_type": "tensorrt", "tensorrt_config": "/no.yaml"}, r"configuration file /no\.yaml"),
        ({"backend_type": "triton", "triton_url": "http://localhost:8000"}, "expected host:port"),
        ({"backend_type": "triton", "embedding_candidates": "a:b:c"}, "The candidate is 'a:b:c'; expected"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_embedding_backend(**arguments)


@pytest.mark.parametrize(("enabled", "left"), [("true", "a_onnx"), ("false", "a_trt:1, b_trt")])
def test_tensorrt_settings_that_leave_no_candidate_are_refused(
    enabled: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENABLED", enabled)

    with pytest.raises(ConfigError, match=rf"enabled is {enabled}, which leaves none of .* \({left}\)"):
        get_embedding_backend("triton", embedding_candidates=left)


def test_settings_that_are_passed_are_all_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PipelineSettings(embedding=EmbeddingSettings(backend="tensorrt", model_repository=tmp_path))
    usual = tmp_path / "config/pipeline"
    usual.mkdir(parents=True)
    (usual / "arcface_tensorrt.yaml").write_text("this is: [not YAML")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCFACE_TENSORRT_ENABLED", "perhaps")
    make_backend(settings).close()
