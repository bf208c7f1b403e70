from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcface_client.errors import ConfigError, ContractError
from arcface_server.backends.config import InstanceConfig, read_instance_config


def triton_arguments(**config: Any) -> dict[str, str]:
    """What Triton passes to a Python-based backend, with the fields that are read."""
    defaults: dict[str, Any] = {
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["112", "112", "3"]}],
        "output": [{"name": "embedding", "data_type": "TYPE_FP32", "dims": ["512"]}],
        "default_model_filename": "",
    }
    return {
        "model_config": json.dumps({**defaults, **config}),
        "model_instance_device_id": "0",
        "model_instance_kind": "CPU",
        "model_name": "arcface",
        "model_repository": "/models/arcface",
        "model_version": "3",
    }


def test_the_configuration_names_the_files() -> None:
    plans = {"8.0": "arcface-fp16-sm80.plan"}
    config = read_instance_config(
        triton_arguments(default_model_filename="other.onnx", cc_model_filenames=plans)
    )
    assert config.version_folder == Path("/models/arcface/3")
    assert (config.filename, config.cc_filenames) == ("other.onnx", plans)
    config = read_instance_config(triton_arguments())
    assert (config.filename, config.cc_filenames) == ("", {})


def test_a_configuration_with_other_tensors_is_refused() -> None:
    tensor = {"name": "data", "data_type": "TYPE_FP32", "dims": ["3", "112", "112"]}
    with pytest.raises(ContractError, match=r"pbtxt of arcface has inputs data FP32\[N, 3, 112, 112\]"):
        read_instance_config(triton_arguments(input=[tensor]))


def test_parameters_are_numbers_or_session_entries() -> None:
    parameters = {"threads": "4", "odd": "x", "session.intra_op.allow_spinning": "0"}
    config = InstanceConfig(Path("1"), "", "CPU", 0, parameters=parameters)
    assert config.integer("threads", default=0) == 4
    assert config.integer("absent", default=7) == 7
    assert config.with_prefix("session.") == {"session.intra_op.allow_spinning": "0"}
    with pytest.raises(ConfigError, match=r"Parameter odd is 'x' in config\.pbtxt; expected a number"):
        config.integer("odd", default=0)
