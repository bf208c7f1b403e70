"""What a user sets: the files, the environment, and arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcface_client.errors import ConfigError
from arcface_client.runtimes.base import Device
from arcface_client.settings import PipelineSettings, load_pipeline_settings, load_tensorrt_settings

SHIPPED = Path(__file__).parents[2] / "config/pipeline"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, without the files that the project has."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str = "", **environment: str) -> PipelineSettings:
    """Read the settings of a file with this text, and of ARCFACE_* variables."""
    Path("embedding.yaml").write_text(text)
    variables = {f"ARCFACE_{name}": value for name, value in environment.items()}
    return load_pipeline_settings(Path("embedding.yaml"), environment=variables)


def test_an_argument_goes_before_the_environment_before_the_file_before_the_default() -> None:
    Path("embedding.yaml").write_text("triton: {url: 'file:1', model: from_file, max_in_flight: 3}")
    settings = load_pipeline_settings(
        Path("embedding.yaml"),
        environment={"ARCFACE_TRITON_URL": "environment:2", "ARCFACE_TRITON_MODEL": "from_environment"},
        arguments={"triton.url": "argument:3", "triton.version": None},
    )
    triton = settings.triton
    assert (triton.url, triton.model, triton.version) == (("argument:3",), "from_environment", None)
    assert triton.max_in_flight == 3
    assert triton.request_timeout_s == 60


def test_the_shipped_files_say_the_defaults() -> None:
    read = load_pipeline_settings(SHIPPED / "embedding.yaml", environment={})
    assert read == load_pipeline_settings(environment={})
    assert load_tensorrt_settings(SHIPPED / "arcface_tensorrt.yaml", environment={}) == read.tensorrt


def test_the_files_are_found_from_the_projects_folder() -> None:
    usual = Path("config/pipeline")
    usual.mkdir(parents=True)
    (usual / "embedding.yaml").write_text("triton: {model: found}")
    (usual / "arcface_tensorrt.yaml").write_text("tensorrt: {precision: int8}")
    settings = load_pipeline_settings(environment={})
    assert (settings.triton.model, settings.tensorrt.precision) == ("found", "int8")
    assert load_tensorrt_settings(environment={}) == settings.tensorrt


def test_a_mistyped_variable_is_warned_of_with_the_nearest_name(caplog: pytest.LogCaptureFixture) -> None:
    of_a_kubernetes_service = {
        "TRITON_SERVICE_HOST": "10.0.0.1",
        "TRITON_SERVICE_PORT_GRPC": "8001",
        "OTHER_PORT": "tcp://10.0.0.1:8001",
        "TRITON_PORT_8001_TCP_ADDR": "10.0.0.1",
    }
    known = {"TRITON_URL": "known:1", "CACHE_DIR": "/cache", "EMBEDDING_SAUCE": ""}
    settings = load("", TENSORRT_PRECISON="fp32", WHATEVER="1", **of_a_kubernetes_service, **known)
    assert settings.triton.url == ("known:1",)
    ignored = "The environment variable ARCFACE_{} is ignored; {}"
    assert caplog.messages == [
        ignored.format("TENSORRT_PRECISON", "did you mean ARCFACE_TENSORRT_PRECISION?"),
        ignored.format("WHATEVER", "there is no such setting."),
    ]


def test_any_certificate_turns_tls_on() -> None:
    Path("ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    tls = load(TRITON_TLS_ROOT_CERTIFICATES="ca.pem").triton.limits.tls
    assert tls is not None
    assert tls.root_certificates == Path("ca.pem")
    assert load(TRITON_TLS_ENABLED="true").triton.limits.tls is not None
    assert load(TRITON_TLS_ENABLED="0").triton.limits.tls is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("triton: {ulr: x}", r"embedding\.yaml has the unknown key triton\.ulr; did you mean triton\.url\?"),
        ("wholly: different", r"unknown key wholly; known keys: embedding\.backend, "),
        ("triton: {url: 'x", r"is not YAML"),
        ("triton: {version: newest}", r"yaml: triton\.version is 'newest'; expected a valid integer"),
        ("embedding: {model: true}", r"embedding\.model is True; expected a valid string"),
        ("triton: {max_request_mb: .nan}", r"triton\.max_request_mb is nan; expected a finite number"),
        ("triton: {url: 'a:1,,b:2'}", r"triton\.url is 'a:1,,b:2'; expected at least 1 character\."),
        ("triton: {tls: {root_certificates: /nowhere.pem}}", r"tls\.root_certificates is /nowhere\.pem"),
        ("embedding: {backend: torch}", r"backend is 'torch'; expected 'insightface', 'cudnn', "),
        ("embedding: {device: mps}", r"embedding\.device is 'mps'; expected 'cpu', 'cuda', 'cuda:N' for"),
        (
            "embedding: {model: a_onnx}",
            r"embedding\.model is 'a_onnx'; expected .* without _onnx, _trt and",
        ),
        ("embedding: {tensorrt_config: no.yaml}", r"Cannot read the configuration file no\.yaml"),
        ("validation: {max_drift_cosine: 0}", r"max_drift_cosine is 0; expected greater than 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TRITON_MAX_IN_FLIGHT", r"triton\.max_in_flight is 'many'; expected a valid integer"),
        ("TENSORRT_ENABLED", r"arcface_tensorrt\.enabled is 'many'; expected auto, true or false\."),
    ],
)
def test_a_bad_variable_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^ARCFACE_{name}: {message}"):
        load(**{name: "many"})


def test_a_missing_file_and_a_bad_argument_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_pipeline_settings(Path("none.yaml"), environment={})
    with pytest.raises(ConfigError, match=r"^triton\.version is 'none'; expected a valid integer"):
        load_pipeline_settings(environment={}, arguments={"triton.version": "none"})


def test_several_servers_are_a_list_or_a_text_with_commas() -> None:
    assert load("triton: {url: [one:1, two:2]}").triton.url == ("one:1", "two:2")
    assert load(TRITON_URL="one:1, two:2").triton.url == ("one:1", "two:2")
    with pytest.raises(ConfigError, match=r"triton\.url is empty; expected one or more"):
        load("triton: {url: ''}").triton.required_urls()


def test_the_embedders_settings_come_from_the_same_file() -> None:
    embedding = load(
        "embedding: {backend: triton, candidates: [a_trt:3, a_onnx], device: 'cuda:1'}",
        EMBEDDING_MODEL_REPOSITORY="/models",
        EMBEDDING_ALLOW_CPU_FALLBACK="false",
    ).embedding
    assert (embedding.backend, embedding.candidates) == ("triton", ("a_trt:3", "a_onnx"))
    assert (embedding.device, embedding.allow_cpu_fallback) == (Device("cuda", 1), False)
    assert embedding.model_repository == Path("/models")
    assert embedding.max_drift_cosine == 0.001
    assert load("embedding: {backend: pytorch}").embedding.backend == "insightface"  # its former name


def test_the_clients_model_is_of_the_family_that_is_embedded_with() -> None:
    text = "embedding: {model: arcface_r50}"
    assert load(text, TRITON_MODEL="").triton.model == "arcface_r50_onnx"
    assert load(text, TRITON_MODEL="other").triton.model == "other"


def test_the_tensorrt_file_that_the_pipeline_names_is_read() -> None:
    Path("other.yaml").write_text("tensorrt: {precision: bf16}\nvalidation: {max_drift_cosine: 0.02}")
    settings = load("validation: {max_drift_cosine: 0.01}", EMBEDDING_TENSORRT_CONFIG="other.yaml")
    assert settings.tensorrt.precision == "bf16"
    assert (settings.embedding.max_drift_cosine, settings.tensorrt.max_drift_cosine) == (0.01, 0.02)
    settings = load(VALIDATION_MAX_DRIFT_COSINE="0.03")
    assert (settings.embedding.max_drift_cosine, settings.tensorrt.max_drift_cosine) == (0.03, 0.03)


@pytest.mark.parametrize(
    ("text", "enabled"),
    [
        ("auto", "auto"),
        ("true", "required"),
        ("no", "off"),
    ],
)
def test_tensorrt_is_used_if_there_or_required_or_off(text: str, enabled: str) -> None:
    Path("plans.yaml").write_text(f"arcface_tensorrt: {{enabled: {text}}}")
    assert load_tensorrt_settings(Path("plans.yaml"), environment={}).enabled == enabled
    assert load_tensorrt_settings(environment={"ARCFACE_TENSORRT_ENABLED": text}).enabled == enabled
