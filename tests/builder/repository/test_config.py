from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_builder.errors import OptionError, RepositoryError
from arcface_builder.repository.config import (
    ServingOptions,
    check_width,
    config_text,
    cudnn_config,
    onnx_config,
    openvino_config,
    openvino_server_config,
    plan_config,
)

ONNX = onnx_config("arcface_r100_onnx", ServingOptions())
PLANS = plan_config(
    "arcface_r100_trt",
    filenames={"8.0": "arcface_r100-fp16-sm80.plan", "12.0": "arcface_r100-fp16-sm120.plan"},
    versions=[2, 1],
    max_batch_size=32,
    profiles=2,
)


CUDNN = cudnn_config("arcface_r100_cudnn", 512, instances=2)
OPENVINO = openvino_config("arcface_r100_openvino", 512, instances=2)
MERGING = openvino_server_config("arcface_r100_openvino", 512, instances=2)


@pytest.mark.parametrize(
    ("config", "file"),
    [
        (ONNX, "arcface_r100_onnx"),
        (PLANS, "arcface_r100_trt"),
        (CUDNN, "arcface_r100_cudnn"),
        (OPENVINO, "arcface_r100_openvino"),
        (MERGING, "arcface_r100_openvino-arcface-server"),
    ],
    ids=["onnx", "plans", "cudnn", "openvino", "openvino in arcface-server"],
)
def test_the_configuration_is_the_golden_file(config: Any, file: str) -> None:
    golden = (Path(__file__).parent / f"{file}.pbtxt").read_text()
    assert config_text(config) == golden
    assert text_format.Parse(golden, model_config_pb2.ModelConfig()) == config
    # Triton batches requests only if this is set, even with a delay of 0. NVIDIA's openvino backend would pad
    # every request to the largest batch.
    assert config.WhichOneof("scheduling_choice") == (None if config is OPENVINO else "dynamic_batching")


def test_the_operators_choices_are_in_the_configuration() -> None:
    options = ServingOptions(
        max_batch_size=64, max_queue_delay_us=200, device="gpu", instances=2, intra_op_threads=4
    )
    config = onnx_config("arcface_r100_onnx", options)

    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "4"


def test_a_model_that_takes_one_crop_at_a_time_has_nothing_to_merge() -> None:
    of_plans: dict[str, Any] = {"filenames": {"8.0": "m-fp16-sm80.plan"}, "versions": [1], "profiles": 1}
    onnx = onnx_config("m_onnx", ServingOptions(max_batch_size=1))
    plans = plan_config("m_trt", max_batch_size=1, **of_plans)

    for config in (onnx, plans):
        assert config.max_batch_size == 1
        assert config.WhichOneof("scheduling_choice") is None
        assert {warmup.batch_size for warmup in config.model_warmup} == {1}
    larger = plan_config("m_trt", max_batch_size=8, old=plans, **of_plans)
    assert larger.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert sorted(warmup.batch_size for warmup in larger.model_warmup) == [1, 8]


def test_the_width_of_an_embedding_is_the_networks_own(tmp_path: Path) -> None:
    onnx = onnx_config("m_onnx", ServingOptions(), 128)
    plans = plan_config(
        "m_trt",
        filenames={"8.0": "m-fp16-sm80.plan"},
        versions=[1],
        max_batch_size=8,
        profiles=1,
        embedding_dim=128,
    )

    assert [list(config.output[0].dims) for config in (onnx, plans)] == [[128], [128]]
    (tmp_path / "config.pbtxt").write_text(config_text(onnx))
    check_width(tmp_path / "config.pbtxt", 128)
    with pytest.raises(RepositoryError, match=r"m_onnx have 128 numbers, .* 512: .* another --name"):
        check_width(tmp_path / "config.pbtxt", 512)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_batch_size", 0),
        ("max_queue_delay_us", -1),
        ("instances", 0),
        ("intra_op_threads", -1),
        ("device", "tpu"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{option} is {value!r}; expected"):
        ServingOptions(**{option: value})
