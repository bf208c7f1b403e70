"""The fields of a model's configuration that a backend reads; Triton's core acts on the others itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcface_client.contract import TensorSpec, check_tensors
from arcface_client.errors import ConfigError


@dataclass(frozen=True)
class InstanceConfig:
    """What one instance of a model loads, and where.

    Attributes:
        version_folder: Folder of the version to load.
        filename: The file in it that serves every device; empty if the configuration names none.
        device: ``"CPU"`` or ``"GPU"``.
        device_id: Number of the GPU; 0 for a CPU.
        cc_filenames: The files by compute capability ("8.6").
        parameters: The configuration's free parameters.
        max_batch_size: The largest batch; 0 without Triton's batching.
        gpu_is_required: Whether the configuration asks for a GPU, and not for one if there is one.
    """

    version_folder: Path
    filename: str
    device: str
    device_id: int
    cc_filenames: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    max_batch_size: int = 0
    gpu_is_required: bool = True

    def integer(self, name: str, *, default: int) -> int:
        """A parameter that is a number.

        Raises:
            ConfigError: Its value is not a number.
        """
        text = self.parameters.get(name)
        if text is None:
            return default
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"Parameter {name} is {text!r} in config.pbtxt; expected a number.") from None


def read_instance_config(args: Mapping[str, str]) -> InstanceConfig:
    """Read the arguments of ``TritonPythonModel.initialize``: the configuration is JSON with every field.

    Raises:
        ContractError: The configuration declares other tensors than the contract's.
    """
    config: dict[str, Any] = json.loads(args["model_config"])
    # A model without Triton's batching spells the batch dimension out, as -1.
    skip = 0 if config["max_batch_size"] > 0 else 1
    check_tensors(
        f"The config.pbtxt of {args['model_name']}",
        [_spec(tensor, skip) for tensor in config["input"]],
        [_spec(tensor, skip) for tensor in config["output"]],
    )
    return InstanceConfig(
        version_folder=Path(args["model_repository"], args["model_version"]),
        filename=config.get("default_model_filename", ""),
        device=args["model_instance_kind"],
        device_id=int(args["model_instance_device_id"]),
        cc_filenames=config.get("cc_model_filenames", {}),
        parameters={name: value["string_value"] for name, value in config.get("parameters", {}).items()},
        max_batch_size=int(config["max_batch_size"]),
        gpu_is_required=_asks_for_gpu(Path(args["model_repository"], "config.pbtxt")),
    )


def _asks_for_gpu(path: Path) -> bool:
    """Whether the file has KIND_GPU; in the JSON, Triton has decided what KIND_AUTO, the default, is."""
    return not path.is_file() or "KIND_GPU" in path.read_text(encoding="utf-8")


def _spec(tensor: Mapping[str, Any], skip: int) -> TensorSpec:
    dims = tuple(int(dim) for dim in tensor["dims"][skip:])  # numbers of 64 bits are text in Triton's JSON
    return tensor["name"], tensor["data_type"].removeprefix("TYPE_"), dims
