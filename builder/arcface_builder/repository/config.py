"""Write Triton's ``config.pbtxt`` as a protobuf message, so that every name in it is checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM, INPUT_NAME, OUTPUT_NAME
from arcface_client.models.manifest import MODEL_FILE

from ..errors import OptionError

CONFIG_FILE: Final = "config.pbtxt"

VERSIONS_SERVED: Final = 2
"""The newest version and the one before: a client can stay on the last release until the new one has
proved itself. Memory is the price of each further one."""

MOST_INSTANCES: Final = 64

Device = Literal["cpu", "gpu"]

_KINDS: Final[dict[str, str]] = {"cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What an operator may choose about a served model.

    Attributes:
        max_batch_size: Largest batch that Triton hands to the model, 1 to 1024.
        max_queue_delay_us: How long Triton holds a request back to fill a batch. 0 still merges what
            is waiting already.
        device: Where ONNX Runtime computes: "cpu", or "gpu" for one set of instances on each GPU.
        instances: Copies of the model that run side by side (on each GPU).
        intra_op_threads: Threads of each instance inside one operator; 0 is one per physical core.

    Raises:
        OptionError: A value is out of its range.
    """

    max_batch_size: int = 32
    max_queue_delay_us: int = 0
    device: Device = "cpu"
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
        """The arguments of ``arcface-builder build`` that say the same; none for defaults."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            text
            for field in fields(self)
            if chosen[field.name] != field.default
            for text in (f"--{field.name.replace('_', '-')}", str(chosen[field.name]))
        ]


def onnx_config(model: str, options: ServingOptions) -> Any:
    """Make the complete configuration of an ONNX Runtime model, nothing left to auto-completion.

    Args:
        model: Name of the model, which is the name of its folder.
        options: The operator's choices.

    Returns:
        A ``model_config_pb2.ModelConfig``.
    """
    pb = model_config_pb2
    config = pb.ModelConfig(
        name=model,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        default_model_filename=MODEL_FILE,
        max_batch_size=options.max_batch_size,
    )
    config.input.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=CROP_SHAPE)
    config.output.add(name=OUTPUT_NAME, data_type=pb.TYPE_FP32, dims=[EMBEDDING_DIM])
    # Set even if it is 0: the message being there is what switches batching on.
    config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_us
    config.instance_group.add(name=options.device, kind=_KINDS[options.device], count=options.instances)
    config.version_policy.latest.num_versions = VERSIONS_SERVED
    config.parameters["intra_op_thread_count"].string_value = str(options.intra_op_threads)
    # A model becomes ready only after it has embedded one crop: the first caller does not pay for
    # memory and kernels being set up, and a model that loads but cannot run is not offered.
    warmup = config.model_warmup.add(name="one_crop", batch_size=1)
    warmup.inputs[INPUT_NAME].data_type = pb.TYPE_UINT8
    warmup.inputs[INPUT_NAME].dims.extend(CROP_SHAPE)
    warmup.inputs[INPUT_NAME].random_data = True
    return config


def config_text(config: Any) -> str:
    """Write a ``ModelConfig`` as the text that Triton reads."""
    return str(text_format.MessageToString(config))


def config_changes(old: str, new: str) -> str:
    """What differs between two configurations, in one line: "- count: 2, + count: 1"."""
    before, after = ([line.strip() for line in text.splitlines()] for text in (old, new))
    return ", ".join(line for line in difflib.ndiff(before, after) if line[0] in "+-")


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Check a setting; raises OptionError."""
    if not low <= value <= high:
        raise OptionError(f"{name} is {value}; expected {low} to {high}.", name)
