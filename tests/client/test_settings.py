from pathlib import Path

import pytest

from arcface_client.errors import ConfigError
from arcface_client.settings import TritonSettings, load_settings

SHIPPED = Path(__file__).parents[2] / "config/pipeline/embedding.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "embedding.yaml"
    path.write_text(text)
    return path


def test_argument_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    path = write(tmp_path, "triton: {url: 'file:1', model: from_file, max_in_flight: 3}")
    environment = {"ARCFACE_TRITON_URL": "environment:2", "ARCFACE_TRITON_MODEL": "from_environment"}
    settings = load_settings(path, environment=environment, arguments={"triton.url": "argument:3"})
    assert settings == TritonSettings(
        url="argument:3",
        model="from_environment",
        version=None,
        request_timeout_s=60.0,
        max_in_flight=3,
        tls=None,
    )


def test_the_shipped_file_says_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(SHIPPED, environment={}) == load_settings(environment={})


def test_the_shipped_file_is_found_from_the_projects_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config/pipeline").mkdir(parents=True)
    write(tmp_path / "config/pipeline", "triton: {model: found}")
    monkeypatch.chdir(tmp_path)
    assert load_settings(environment={}).model == "found"


def test_any_certificate_turns_tls_on(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    settings = load_settings(environment={"ARCFACE_TRITON_TLS_ROOT_CERTIFICATES": str(certificate)})
    assert settings.tls is not None
    assert settings.tls.root_certificates == certificate


def test_tls_without_certificates_is_possible() -> None:
    assert load_settings(environment={"ARCFACE_TRITON_TLS_ENABLED": "true"}).tls is not None
    assert load_settings(environment={"ARCFACE_TRITON_TLS_ENABLED": "0"}).tls is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("triton: {ulr: x}", r"unknown key triton\.ulr; known keys: triton\.url, "),
        ("trition: {url: x}", r"unknown key trition\.url"),
        ("triton: [1]", r"has \[1\] where triton\. should hold keys and values"),
        ("- 1", r"where the file should hold keys"),
        ("triton: {version: newest}", r"triton\.version is 'newest'; expected a whole number"),
        ("triton: {request_timeout_s: soon}", r"triton\.request_timeout_s is 'soon'; expected a number"),
        ("triton: {tls: {enabled: perhaps}}", r"triton\.tls\.enabled is 'perhaps'; expected true or false"),
        ("triton: {url: 'x", r"is not YAML"),
        ("triton: {tls: {root_certificates: /nowhere.pem}}", r"tls\.root_certificates is /nowhere\.pem"),
        ("triton: {tls: {private_key: " + str(SHIPPED) + "}}", r"needs both tls\.private_key and"),
    ],
)
def test_a_bad_file_is_refused_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(write(tmp_path, text), environment={})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_settings(tmp_path / "none.yaml", environment={})


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"ARCFACE_TRITON_MAX_IN_FLIGHT: triton\.max_in_flight is 'many'"):
        load_settings(environment={"ARCFACE_TRITON_MAX_IN_FLIGHT": "many"})
