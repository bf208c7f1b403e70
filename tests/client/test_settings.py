from pathlib import Path
from typing import Any

import pytest

from arcface_client.config.devices import Device
from arcface_client.config.settings import TritonSettings, load_pipeline_settings
from arcface_client.errors import ConfigError, InputError
from arcface_client.failover.intervals import Rhythm
from arcface_client.failover.server import RequestLimits

SHIPPED = Path(__file__).parents[2] / "config/pipeline/embedding.yaml"


def load_settings(*arguments: Any, **keywords: Any) -> TritonSettings:
    return load_pipeline_settings(*arguments, **keywords).triton


def write(folder: Path, text: str) -> Path:
    path = folder / "embedding.yaml"
    path.write_text(text)
    return path


def test_argument_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    path = write(tmp_path, "triton: {url: 'file:1', model: from_file, max_in_flight: 3}")
    environment = {"ARCFACE_TRITON_URL": "environment:2", "ARCFACE_TRITON_MODEL": "from_environment"}
    settings = load_settings(path, environment=environment, arguments={"triton.url": "argument:3"})
    assert settings == TritonSettings(
        urls=("argument:3",),
        model="from_environment",
        version=None,
        limits=RequestLimits(max_in_flight=3),
        shadow_rate=0.0,
        rhythm=Rhythm(),
    )


def test_a_variable_that_nobody_reads_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    environment = {
        "ARCFACE_TRITON_URLS": "misspelt:1",
        "ARCFACE_TRITON_PORT": "8001",
        "ARCFACE_CACHE_DIRECTORY": "/cache",
        # Of a Kubernetes service named arcface-triton.
        "ARCFACE_TRITON_SERVICE_HOST": "10.0.0.1",
        "ARCFACE_TRITON_SERVICE_PORT_GRPC": "8001",
        "ARCFACE_OTHER_PORT": "tcp://10.0.0.1:8001",
        "ARCFACE_TRITON_PORT_8001_TCP_ADDR": "10.0.0.1",
        "ARCFACE_BACKEND": "triton",
        "ARCFACE_TRITON_URL": "known:1",
        "ARCFACE_VALIDATION_MAX_DRIFT_COSINE": "0.01",
        "ARCFACE_TENSORRT_PRECISON": "of TensorRT's settings",
        "ARCFACE_CACHE_DIR": "/cache",
        "ARCFACE_EMBEDDING_SAUCE": "",
    }
    assert load_settings(environment=environment).urls == ("known:1",)
    assert caplog.messages == [
        f"The environment variable {name} is ignored: there is no such setting"
        for name in (
            "ARCFACE_TRITON_URLS",
            "ARCFACE_TRITON_PORT",
            "ARCFACE_CACHE_DIRECTORY",
            "ARCFACE_BACKEND",
        )
    ]


def test_the_shipped_file_says_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_pipeline_settings(SHIPPED, environment={}) == load_pipeline_settings(environment={})


def test_the_shipped_file_is_found_from_the_projects_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config/pipeline").mkdir(parents=True)
    write(tmp_path / "config/pipeline", "triton: {model: found}")
    monkeypatch.chdir(tmp_path)
    assert load_settings(environment={}).model == "found"


def test_any_certificate_turns_tls_on(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----")
    settings = load_settings(environment={"ARCFACE_TRITON_TLS_ROOT_CERTIFICATES": str(certificate)})
    assert settings.limits.tls is not None
    assert settings.limits.tls.root_certificates == certificate


def test_tls_without_certificates_is_possible() -> None:
    assert load_settings(environment={"ARCFACE_TRITON_TLS_ENABLED": "true"}).limits.tls is not None
    assert load_settings(environment={"ARCFACE_TRITON_TLS_ENABLED": "0"}).limits.tls is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("triton: {ulr: x}", r"unknown key triton\.ulr; known keys: .*, triton\.url, "),
        ("trition: {url: x}", r"unknown key trition\.url"),
        ("triton: [1]", r"has \[1\] where triton should hold keys and values"),
        ("triton: &a {x: *a}", r"nests keys deeper than any setting, from triton\.x\.x\."),
        ("- 1", r"where the file should hold keys"),
        ("triton: {version: newest}", r"triton\.version is 'newest'; expected a whole number"),
        ("triton: {request_timeout_s: soon}", r"triton\.request_timeout_s is 'soon'; expected a number"),
        ("triton: {tls: {enabled: perhaps}}", r"triton\.tls\.enabled is 'perhaps'; expected true or false"),
        ("triton: {url: 'x", r"is not YAML"),
        ("triton: 0", r"has 0 where triton should hold keys and values"),
        ("triton: {model: {a: 1}}", r"triton\.model is {'a': 1}; expected a text"),
        ("triton: {model: [a]}", r"triton\.model is \['a'\]; expected a text"),
        ("triton: {model: yes}", r"triton\.model is True; expected a text"),
        ("triton: {model: ''}", r"triton\.model is ''; expected a text"),
        ("triton: {max_in_flight: true}", r"triton\.max_in_flight is True; expected a whole number"),
        ("triton: {max_in_flight: 2.5}", r"triton\.max_in_flight is 2\.5; expected a whole number"),
        ("triton: {url: [{a: 1}]}", r"triton\.url is \[{'a': 1}\]; expected .* a list of texts"),
        ("triton: {url: 'a:1,,b:2'}", r"triton\.url is 'a:1,,b:2'; expected"),
        (
            "embedding: {backend: torch}",
            r"embedding\.backend is 'torch'; expected one of pytorch, ",
        ),
        ("embedding: {device: mps}", r"embedding\.device is 'mps'; expected cpu, cuda, cuda:N for GPU N"),
        ("embedding: {allow_cpu_fallback: 2}", r"allow_cpu_fallback is 2; expected true or false"),
        ("triton: {url: a:1}\ntriton: {url: b:1}", r"is not YAML: the key 'triton' comes twice"),
        ("triton: {url: a:1, url: b:1}", r"the key 'url' comes twice"),
        ("embedding: {model: ''}", r"embedding\.model is ''; expected the name that models share"),
        ("embedding: {model: a_onnx}", r"embedding\.model is 'a_onnx'; expected .* without _onnx or _trt"),
        ("validation: {max_drift_cosine: small}", r"max_drift_cosine is 'small'; expected a number"),
        (
            "validation: {max_drift_cosine: 0}",
            r"max_drift_cosine is 0; expected a number above 0 and",
        ),
        (
            "validation: {max_drift_cosine: 1}",
            r"max_drift_cosine is 1; expected a number above 0 and",
        ),
        ("validation: {max_drift_cosine: .nan}", r"max_drift_cosine is nan; expected a number"),
        ("triton: {tls: {root_certificates: /nowhere.pem}}", r"tls\.root_certificates is /nowhere\.pem"),
        ("triton: {tls: {private_key: " + str(SHIPPED) + "}}", r"needs both tls\.private_key and"),
    ],
)
def test_a_bad_file_is_refused_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(write(tmp_path, text), environment={})


def test_several_servers_are_a_list_or_a_text_with_commas(tmp_path: Path) -> None:
    listed = load_settings(write(tmp_path, "triton: {url: [one:1, two:2]}"), environment={})
    assert listed.urls == ("one:1", "two:2")
    assert load_settings(environment={"ARCFACE_TRITON_URL": "one:1, two:2"}).urls == ("one:1", "two:2")


def test_an_empty_variable_does_not_count() -> None:
    assert load_settings(environment={"ARCFACE_TRITON_MODEL": ""}).model == "arcface_r100_onnx"


def test_an_argument_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"validation\.max_drift_cosine is 'none'; expected a number"):
        load_pipeline_settings(environment={}, arguments={"validation.max_drift_cosine": "none"})


def test_what_a_pipeline_embeds_with_comes_from_the_same_file(tmp_path: Path) -> None:
    path = write(tmp_path, "embedding: {backend: triton, candidates: [a_trt:3, a_onnx]}\ntriton: {model: b}")
    settings = load_pipeline_settings(path, environment={"ARCFACE_EMBEDDING_MODEL_REPOSITORY": "/models"})
    assert settings.embedding.backend == "triton"
    assert settings.embedding.candidates == ("a_trt:3", "a_onnx")
    assert settings.embedding.model_repository == Path("/models")
    assert settings.embedding.max_drift_cosine == 0.001
    assert settings.triton == load_settings(path, environment={})


def test_an_operator_says_where_to_compute_and_what_may_stand_in(tmp_path: Path) -> None:
    path = write(tmp_path, "embedding: {device: 'cuda:1', allow_cpu_fallback: false}")
    embedding = load_pipeline_settings(path, environment={"ARCFACE_EMBEDDING_DEVICE": "auto"}).embedding
    assert (embedding.device, embedding.allow_cpu_fallback) == (Device("auto"), False)
    assert load_pipeline_settings(path, environment={}).embedding.device == Device("cuda", 1)


def test_the_model_of_the_client_is_of_the_family_that_is_embedded_with(tmp_path: Path) -> None:
    path = write(tmp_path, "embedding: {model: arcface_r50}")
    assert load_settings(path, environment={}).model == "arcface_r50_onnx"
    assert load_settings(path, environment={"ARCFACE_TRITON_MODEL": "other"}).model == "other"


def test_a_limit_out_of_range_is_refused_when_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_in_flight is 0; expected 1 or more"):
        load_settings(write(tmp_path, "triton: {max_in_flight: 0}"), environment={})


def test_how_often_servers_are_looked_at_is_set(tmp_path: Path) -> None:
    path = write(tmp_path, "triton: {recheck_s: 5, liveness_s: 0.5}")
    assert load_settings(path, environment={}).rhythm == Rhythm(recheck_s=5, liveness_s=0.5)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_settings(tmp_path / "none.yaml", environment={})


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"ARCFACE_TRITON_MAX_IN_FLIGHT: triton\.max_in_flight is 'many'"):
        load_settings(environment={"ARCFACE_TRITON_MAX_IN_FLIGHT": "many"})
