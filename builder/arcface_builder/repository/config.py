"""Triton's ``config.pbtxt``, written as protobuf's ``ModelConfig`` so that every name in it is checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM, INPUT_NAME, OUTPUT_NAME
from arcface_client.models.manifest import MODEL_FILE
from arcface_client.models.naming import SERVER_CONFIG

from ..errors import OptionError, RepositoryError, check_range

CONFIG_FILE: Final = "config.pbtxt"

SERVER_CONFIG_FILE: Final = f"configs/{SERVER_CONFIG}.pbtxt"
"""What ``arcface-server`` takes in its place, where a model has it."""

VERSIONS_SERVED: Final = 2
"""The newest version and the one before, so that a client can stay on the last release until the new one has
proved itself. Each further version costs memory."""

MOST_INSTANCES: Final = 64

PYTHON_FILE: Final = "model.py"
"""What Triton's Python backend runs."""

_LARGEST_CUDNN_BATCH: Final = 256
_EVERY_GRAPH: Final = 32

DEFAULT_PLAN_INSTANCES: Final = 2
"""Copies of a plan on each GPU: one copies its input while the other computes."""

Device = Literal["auto", "cpu", "gpu"]

_KINDS: Final[dict[str, str]] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
_FULL_BATCH: Final = "full_batch"


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What an operator may choose about a served ONNX model.

    Attributes:
        max_batch_size: Largest batch that Triton hands to the model, 1 to 1024.
        max_queue_delay_us: How long Triton holds a request back to fill a batch. With 0, Triton still merges
            the requests that are waiting.
        device: Where ONNX Runtime computes: "cpu", "gpu" for one set of instances on each GPU, or "auto" for
            that if the host has GPUs, and for the CPU if not.
        instances: Copies of the model that run side by side (on each GPU).
        intra_op_threads: Threads of each instance inside one operator; 0 is one per physical core.

    Raises:
        OptionError: A value is out of its range.
    """

    max_batch_size: int = 32
    max_queue_delay_us: int = 0
    device: Device = "auto"
    instances: int = 1
    intra_op_threads: int = 0

    def __post_init__(self) -> None:
        check_range("max_batch_size", self.max_batch_size, 1, 1024)
        check_range("max_queue_delay_us", self.max_queue_delay_us, 0, 10_000_000)
        check_range("instances", self.instances, 1, MOST_INSTANCES)
        check_range("intra_op_threads", self.intra_op_threads, 0, 1024)
        if self.device not in _KINDS:
            raise OptionError(f"device is {self.device!r}; expected one of {', '.join(_KINDS)}.")

    def arguments(self) -> list[str]:
        """The arguments of ``arcface-builder build`` for these options; none for defaults."""
        return [
            text
            for field in fields(self)
            if getattr(self, field.name) != field.default
            for text in (f"--{field.name.replace('_', '-')}", str(getattr(self, field.name)))
        ]


def onnx_config(model: str, options: ServingOptions, embedding_dim: int = EMBEDDING_DIM) -> Any:
    """Make the complete configuration of an ONNX Runtime model: nothing is left to auto-completion."""
    config = _config_of(model, embedding_dim, "onnxruntime", options.device, options.instances)
    config.platform = "onnxruntime_onnx"
    _set_batches(config, options.max_batch_size)
    if options.max_batch_size > 1:
        config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_us
    config.parameters["intra_op_thread_count"].string_value = str(options.intra_op_threads)
    return config


def plan_config(
    model: str,
    *,
    filenames: Mapping[str, str],
    versions: Sequence[int],
    max_batch_size: int,
    profiles: int,
    embedding_dim: int = EMBEDDING_DIM,
    instances: int | None = None,
    old: Any | None = None,
) -> Any:
    """Make the complete configuration of a model of TensorRT plans.

    There is no ``default_model_filename``: Triton then looks for ``model.plan``, which never exists, so that
    a GPU outside the map fails to load and clients use the ONNX sibling.

    Args:
        model: Name of the model.
        filenames: Plan's file name by compute capability, for example "8.6"; all versions share the map.
        versions: The versions to serve.
        max_batch_size: Largest batch that all their plans take.
        profiles: How many all plans have; Triton takes the one whose tuned batch is nearest.
        embedding_dim: Numbers in an embedding.
        instances: Copies on each GPU; None keeps the number of the old configuration, or is 2.
        old: The present configuration; what does not follow from the plans stays as the operator left it.
    """
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(_plan_defaults(model, embedding_dim) if old is None else old)
    config.output[0].dims[:] = [embedding_dim]
    _set_batches(config, max_batch_size)
    config.cc_model_filenames.clear()
    config.cc_model_filenames.update(filenames)
    config.version_policy.specific.versions[:] = sorted(versions)
    for group in config.instance_group:
        group.profile[:] = map(str, range(profiles))
        if instances is not None:
            group.count = instances
    return config


def check_width(path: Path, embedding_dim: int) -> None:
    """Refuse a version whose embeddings have another width than the model's ``config.pbtxt`` says.

    Raises:
        RepositoryError: They have, or Triton could not read the file.
    """
    config = read_config(path)
    if config is None:
        return
    for output in config.output:
        if list(output.dims) != [embedding_dim]:
            raise RepositoryError(
                f"The embeddings of {config.name} have {output.dims[0]} numbers, and those of this source "
                f"{embedding_dim}: galleries of both cannot be compared. Build it with another --name."
            )


def openvino_config(model: str, embedding_dim: int, instances: int) -> Any:
    """Make the complete configuration of a model for NVIDIA's OpenVINO backend.

    It is one without Triton's batching, and takes batches of any size: with batching, NVIDIA's backend pads
    every request to the largest batch. Each instance runs a batch of its own, on a share of the threads.
    """
    config = _config_of(model, embedding_dim, "openvino", "cpu", instances)
    for tensor in (*config.input, *config.output):
        tensor.dims.insert(0, -1)
    del config.model_warmup[:]  # without Triton's batching, tritonserver 2.51 may die of it at its start
    config.parameters["NUM_STREAMS"].string_value = str(instances)
    config.parameters["PERFORMANCE_HINT"].string_value = "LATENCY" if instances == 1 else "THROUGHPUT"
    return config


def openvino_server_config(model: str, embedding_dim: int, instances: int) -> Any:
    """Make the configuration of a model for OpenVINO in ``arcface-server``, whose backend takes any batch.

    So Triton merges requests. One process runs all batches, on one copy of the weights: as many parts of a
    batch as there are instances run side by side, each on a share of the threads.
    """
    config = _config_of(model, embedding_dim, "openvino", "cpu", 1)
    _set_batches(config, ServingOptions.max_batch_size)
    config.parameters["NUM_STREAMS"].string_value = str(instances)
    return config


def cudnn_config(model: str, embedding_dim: int, instances: int) -> Any:
    """Make the complete configuration of a model for cuDNN, which Triton's Python backend runs."""
    config = _config_of(model, embedding_dim, "python", "gpu", instances)
    config.default_model_filename = PYTHON_FILE
    _set_batches(config, _LARGEST_CUDNN_BATCH)
    return config


def config_text(config: Any) -> str:
    """Write a ``ModelConfig`` as the text that Triton reads."""
    return str(text_format.MessageToString(config))


def read_config(path: Path) -> Any | None:
    """Read a model's ``config.pbtxt``: a ``ModelConfig``; None if there is none.

    Raises:
        RepositoryError: Triton could not read it either.
    """
    if not path.is_file():
        return None
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, ValueError) as error:
        raise RepositoryError(
            f"{path} is not a Triton configuration ({error}); correct it, or remove it and run the command "
            "again."
        ) from error


def config_changes(old: str, new: str) -> str:
    """What differs between two configurations, in one line: "- count: 2, + count: 1"."""
    before, after = ([line.strip() for line in text.splitlines()] for text in (old, new))
    return ", ".join(line for line in difflib.ndiff(before, after) if line[0] in "+-")


def _set_batches(config: Any, largest: int) -> None:
    """Set the largest batch; with batches of one there is nothing to merge, and Triton does not try."""
    config.max_batch_size = largest
    if largest == 1:
        config.ClearField("dynamic_batching")
    elif config.WhichOneof("scheduling_choice") is None:
        # The message switches batching on, even with a delay of 0.
        config.dynamic_batching.max_queue_delay_microseconds = 0
    for warmup in config.model_warmup:
        if warmup.name == _FULL_BATCH:
            warmup.batch_size = largest
    # The tensorrt backend records CUDA graphs for the batch sizes that are listed. Others run without one,
    # few crops up to 1.9 times slower. A size that does not fit a profile is logged at the start, and serves.
    graphs = config.optimization.cuda
    if graphs.graph_spec:  # unless an operator has removed them
        del graphs.graph_spec[:]
        for size in graph_sizes(largest):
            graphs.graph_spec.add(batch_size=size)


def graph_sizes(largest: int) -> list[int]:
    """The batch sizes to record CUDA graphs for: all up to 32, then every 32nd, and the largest."""
    every = range(1, min(largest, _EVERY_GRAPH) + 1)
    steps = range(2 * _EVERY_GRAPH, largest + 1, _EVERY_GRAPH)
    return sorted({*every, *steps, largest})


def _config_of(model: str, embedding_dim: int, backend: str, device: Device, instances: int) -> Any:
    """What the configurations of all models have in common."""
    pb = model_config_pb2
    config = pb.ModelConfig(name=model, backend=backend, default_model_filename=MODEL_FILE)
    config.input.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=CROP_SHAPE)
    config.output.add(name=OUTPUT_NAME, data_type=pb.TYPE_FP32, dims=[embedding_dim])
    # A model becomes ready only after it has embedded one crop: the first caller does not wait for memory and
    # kernels to be set up, and a model that loads but cannot run is not offered.
    _add_warmup(config, "one_crop")
    config.instance_group.add(name=device, kind=_KINDS[device], count=instances)
    config.version_policy.latest.num_versions = VERSIONS_SERVED
    return config


def _plan_defaults(model: str, embedding_dim: int) -> Any:
    """What does not follow from the plans."""
    config = _config_of(model, embedding_dim, "tensorrt", "gpu", DEFAULT_PLAN_INSTANCES)
    config.platform = "tensorrt_plan"
    config.ClearField("default_model_filename")  # see ``plan_config``
    # No output_copy_stream: with graphs, backends before 24.10 crash with it.
    config.optimization.cuda.graphs = True
    config.optimization.cuda.graph_spec.add(batch_size=1)  # the others follow from the largest batch
    _add_warmup(config, _FULL_BATCH)
    return config


def _add_warmup(config: Any, name: str) -> None:
    warmup = config.model_warmup.add(name=name, batch_size=1)
    warmup.inputs[INPUT_NAME].data_type = model_config_pb2.TYPE_UINT8
    warmup.inputs[INPUT_NAME].dims.extend(CROP_SHAPE)
    warmup.inputs[INPUT_NAME].random_data = True
