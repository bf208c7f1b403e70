from __future__ import annotations

from pathlib import Path

import pytest

from arcface_client.config.tensorrt_settings import load_tensorrt_settings
from arcface_client.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "config/pipeline/arcface_tensorrt.yaml"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_shipped_file_says_the_defaults(nowhere: Path) -> None:
    assert load_tensorrt_settings(SHIPPED) == load_tensorrt_settings(environment={})


def test_a_variable_that_nobody_reads_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    known = {"ARCFACE_TENSORRT_ENABLED": "false", "ARCFACE_TRITON_URL": "of the pipeline's settings"}
    load_tensorrt_settings(environment=known | {"ARCFACE_TENSORRT_PRECISON": "fp32"})
    (warning,) = caplog.messages
    assert "ARCFACE_TENSORRT_PRECISON is ignored" in warning


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "tensorrt: {precision: tf32, max_batch_size: 8, workspace_size_mb: 512}\n"
        "arcface_tensorrt: {enabled: false}\n"
    )
    environment = {"ARCFACE_TENSORRT_PRECISION": "fp32", "ARCFACE_TENSORRT_MAX_BATCH_SIZE": "16"}

    settings = load_tensorrt_settings(
        path, environment=environment, arguments={"tensorrt.max_batch_size": 64, "tensorrt.precision": None}
    )

    assert settings.max_batch_size == 64
    assert settings.precision == "fp32"
    assert settings.workspace_size_mb == 512
    assert settings.opt_batch_size is None
    assert settings.enabled == "off"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ARCFACE_TENSORRT_ENABLED": "perhaps"},
            "ARCFACE_TENSORRT_ENABLED: .* expected one of auto, true, false",
        ),
        ({"ARCFACE_TENSORRT_MAX_BATCH_SIZE": "x"}, "ARCFACE_TENSORRT_MAX_BATCH_SIZE: .* a whole number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(
    environment: dict[str, str], message: str, nowhere: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_tensorrt_settings(environment=environment)


@pytest.mark.parametrize(
    ("text", "enabled"),
    [
        ("auto", "auto"),
        *((text, "required") for text in ("true", "1", "yes", "ON")),
        *((text, "off") for text in ("False", "0", "no", "off")),
    ],
)
def test_tensorrt_is_used_when_there_or_required_or_kept_out(text: str, enabled: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"arcface_tensorrt: {{enabled: {text}}}")

    assert load_tensorrt_settings(path, environment={}).enabled == enabled
    assert load_tensorrt_settings(environment={"ARCFACE_TENSORRT_ENABLED": text}).enabled == enabled


@pytest.mark.parametrize("text", ["on", "off"])
def test_a_truth_value_is_on_or_off_in_the_environment_as_in_yaml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"tensorrt: {{small_batch_profile: {text}}}")

    assert load_tensorrt_settings(path, environment={}).small_batch_profile is (text == "on")
    environment = {"ARCFACE_TENSORRT_SMALL_BATCH_PROFILE": text}
    assert load_tensorrt_settings(environment=environment).small_batch_profile is (text == "on")
