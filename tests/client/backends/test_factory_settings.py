"""What an embedder is made by: settings, and arguments that go before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arcface_client import get_embedding_backend
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.factory import make_backend
from arcface_client.errors import ConfigError, InputError
from arcface_client.settings import EmbeddingSettings, PipelineSettings

from .conftest import Make


def test_an_argument_takes_precedence_over_the_files_backend(make: Make, tmp_path: Path) -> None:
    config = tmp_path / "embedding.yaml"
    config.write_text("embedding: {backend: onnxruntime}")

    def backend(embedder: EmbeddingBackend) -> str:
        embedder.ensure_ready()
        return embedder.diagnostics().backend

    assert backend(make()) == "insightface"
    assert backend(make(config=config)) == "onnxruntime"
    assert backend(make("pytorch", config=str(config))) == "insightface"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend_type": "torch"},
            "backend_type is 'torch'; expected one of insightface, tensorrt, onnxruntime",
        ),
        ({"device": "mps"}, "device is 'mps'; expected 'cpu'"),
        ({"triton_ulr": "x"}, "There is no setting 'triton_ulr'; known ones: embedding_backend, "),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_embedding_backend(**arguments)


@pytest.mark.parametrize(
    ("argument", "setting", "message"),
    [
        (
            "onnxruntime",
            {"embedding_backend": "triton"},
            "backend_type is 'onnxruntime' and embedding_backend 'triton'",
        ),
        ("cpu", {"embedding_device": "cuda"}, "device is 'cpu' and embedding_device 'cuda'"),
        ("a.yaml", {"embedding_tensorrt_config": "b.yaml"}, "and embedding_tensorrt_config 'b.yaml'"),
        (True, {"embedding_allow_cpu_fallback": False}, "is True and embedding_allow_cpu_fallback False"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused(
    argument: Any, setting: dict[str, Any], message: str
) -> None:
    (name,) = setting
    short = {"embedding_backend": "backend_type"}.get(name, name.removeprefix("embedding_"))
    with pytest.raises(InputError, match=f"{message}; give one of them"):
        get_embedding_backend(**{short: argument}, **setting)


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
