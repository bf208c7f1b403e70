"""A serving graph that is quick to make, load and run, and model repositories with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from arcface_client.contract import CROP_SHAPE, CROP_SIZE, EMBEDDING_DIM, INPUT_NAME, OUTPUT_NAME

TINY_MODEL = "tiny_onnx"

_POOL = 16
_FEATURES = (CROP_SIZE // _POOL) ** 2 * 3
_WORK_DIM = 1024


def tiny_serving_graph(
    seed: int = 0,
    *,
    work: int = 0,
    poison: bool = False,
    quirk: float = 0.0,
    skew: float = 0.0,
    dim: int = EMBEDDING_DIM,
) -> onnx.ModelProto:
    """A serving graph with the contract's tensors: the crop's coarse colours, randomly projected.

    Different seeds embed differently; different images land apart.

    Args:
        seed: Seed of the projection.
        work: How much slower to be, in products of 1024 x 1024 matrices: each adds about 20 ms on one
            core, whatever the batch.
        poison: Fail at run time on a crop whose first byte is 255.
        quirk: How wrong to be on such a crop, and on no other.
        skew: How wrong the projection is, relative to itself: embeddings drift by about half its square.
        dim: How many numbers an embedding has.
    """
    generator = np.random.default_rng(seed)
    projection = generator.standard_normal((_FEATURES, dim)).astype(np.float32)
    bias = 0.01 * generator.standard_normal(dim).astype(np.float32)
    projection += np.float32(skew) * generator.standard_normal(projection.shape).astype(np.float32)
    constants = {
        "centre": np.float32(127.5),
        "projection": projection / np.float32(_FEATURES),
        "bias": bias,
    }
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "centre"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["planes"], ["pooled"], kernel_shape=[_POOL, _POOL], strides=[_POOL, _POOL]
        ),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "projection", "bias"], ["projected"]),
    ]
    last = "projected"
    if work:
        # A chain of products that ends in zero, which the optimiser does not know.
        constants["chain"] = np.zeros((_WORK_DIM, _WORK_DIM), np.float32)
        constants["tile"] = np.array([_WORK_DIM, 2], np.int64)
        constants["first"] = np.array([0], np.int64)
        nodes += [
            helper.make_node("Gather", ["projected", "first"], ["row"], axis=0),
            helper.make_node("Tile", ["row", "tile"], ["link0"]),
        ]
        for index in range(work):
            nodes.append(helper.make_node("MatMul", [f"link{index}", "chain"], [f"link{index + 1}"]))
        nodes += [
            helper.make_node("ReduceSum", [f"link{work}"], ["zero"], keepdims=0),
            helper.make_node("Add", [last, "zero"], ["worked"]),
        ]
        last = "worked"
    if poison or quirk:
        # An index out of bounds for 255 alone; what it gathers else is zero.
        table = (
            np.zeros(255, np.float32) if poison else np.eye(1, 256, 255, np.float32)[0] * np.float32(quirk)
        )
        constants |= {"table": table, "byte": np.array([0], np.int64)}
        nodes += [
            helper.make_node("Flatten", ["float"], ["bytes"]),
            helper.make_node("Gather", ["bytes", "byte"], ["first_byte"], axis=1),
            helper.make_node("Cast", ["first_byte"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["quirk"], axis=0),
            helper.make_node("Add", [last, "quirk"], ["sound"]),
        ]
        last = "sound"
    nodes += [
        helper.make_node("ReduceL2", [last], ["norm"], axes=[1]),
        helper.make_node("Div", [last, "norm"], [OUTPUT_NAME]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["N", *CROP_SHAPE])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N", dim])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_tiny_repository(
    repository: Path,
    name: str = TINY_MODEL,
    *,
    versions: Sequence[int] = (1,),
    max_batch_size: int = 32,
    instances: int = 1,
    delay_us: int | None = 0,
    kind: str = "KIND_CPU",
    parameters: Mapping[str, str] | None = None,
    queue: int = 0,
    dim: int = EMBEDDING_DIM,
    **graph: Any,
) -> Path:
    """Add a tiny model to a model repository; version N has the projection of seed N.

    Args:
        repository: Folder of the model repository; it is made if it is missing.
        name: Name of the model.
        versions: Its versions, all of which are served.
        max_batch_size: Its largest batch.
        instances: How many of it run side by side, one thread each unless parameters say otherwise.
        delay_us: How long Triton waits for a batch to fill; None turns dynamic batching off.
        kind: Where the instances run.
        parameters: Parameters of the configuration, in place of one thread for each instance.
        queue: How many requests Triton lets wait; 0 is any number.
        dim: How many numbers an embedding has.
        graph: What the models are like, as for ``tiny_serving_graph``.

    Returns:
        The model's folder.
    """
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    config.input.add(name=INPUT_NAME, data_type=model_config_pb2.TYPE_UINT8, dims=CROP_SHAPE)
    config.output.add(name=OUTPUT_NAME, data_type=model_config_pb2.TYPE_FP32, dims=[dim])
    config.instance_group.add(count=instances, kind=kind)
    config.version_policy.all.SetInParent()
    if delay_us is not None:
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
        config.dynamic_batching.default_queue_policy.max_queue_size = queue
    for key, value in (parameters or {"intra_op_thread_count": "1"}).items():
        config.parameters[key].string_value = value
    folder = repository / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        onnx.save(tiny_serving_graph(version, dim=dim, **graph), folder / str(version) / "model.onnx")
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    return folder
