from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_builder.errors import OptionError
from arcface_builder.repository.config import ServingOptions, config_text, onnx_config

GOLDEN = Path(__file__).parent / "arcface_r100_onnx.pbtxt"


def test_the_default_configuration_is_the_golden_file() -> None:
    assert config_text(onnx_config("arcface_r100_onnx", ServingOptions())) == GOLDEN.read_text()


def test_the_text_reads_back_as_the_same_message() -> None:
    options = ServingOptions(
        max_batch_size=64, max_queue_delay_us=200, device="gpu", instances=2, intra_op_threads=4
    )
    config = onnx_config("arcface_r100_onnx", options)

    assert text_format.Parse(config_text(config), model_config_pb2.ModelConfig()) == config
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "4"


def test_dynamic_batching_is_on_even_without_delay() -> None:
    config = text_format.Parse(
        config_text(onnx_config("m", ServingOptions())), model_config_pb2.ModelConfig()
    )

    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_batch_size", 0), ("max_queue_delay_us", -1), ("instances", 0), ("intra_op_threads", -1)],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: int) -> None:
    with pytest.raises(OptionError, match=f"{option} is {value}; expected"):
        ServingOptions(**{option: value})  # type: ignore[arg-type]


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(OptionError, match="device is 'tpu'; expected one of cpu, gpu"):
        ServingOptions(device="tpu")  # type: ignore[arg-type]


def test_the_arguments_name_what_is_not_a_default() -> None:
    assert ServingOptions().arguments() == []
    assert ServingOptions(instances=2, device="gpu").arguments() == ["--device", "gpu", "--instances", "2"]
