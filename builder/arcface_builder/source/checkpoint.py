"""Read IResNet state dicts of arcface_torch and find their depth."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcface_client.errors import require

from ..errors import CheckpointError
from .iresnet import BLOCKS, parameter_shapes

_SHOWN = 4  # names in an error message
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")

StateDict = dict[str, npt.NDArray[np.float32]]


def read_checkpoint(path: Path) -> tuple[str, StateDict]:
    """Read a state dict.

    Args:
        path: A ``.safetensors`` file, or anything that ``torch.save`` wrote.

    Returns:
        The depth (a key of ``iresnet.BLOCKS``) and exactly its parameters, float32.

    Raises:
        CheckpointError: The file is unreadable, holds code, or is not the state dict of an IResNet.
        MissingExtraError: Reading it needs torch, which is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}; expected a .pth or .safetensors file.")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    # DistributedDataParallel puts "module." before each name; the batch counters are not needed.
    state = {name.removeprefix("module."): array for name, array in tensors.items()}
    state = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    depth = depth_of(state)
    _check(state, depth, path)
    return depth, {name: np.asarray(array, np.float32) for name, array in state.items()}


def depth_of(names: Mapping[str, object]) -> str:
    """Find the depth by the residual blocks that the parameters belong to.

    Raises:
        CheckpointError: No IResNet has these blocks.
    """
    blocks = {(int(match[1]), int(match[2])) for name in names if (match := _BLOCK.match(name))}
    counts = tuple(sum(stage == wanted for stage, _ in blocks) for wanted in (1, 2, 3, 4))
    for depth, expected in BLOCKS.items():
        if counts == expected:
            return depth
    known = ", ".join(f"{depth} {list(expected)}" for depth, expected in BLOCKS.items())
    raise CheckpointError(
        f"The checkpoint has {list(counts)} residual blocks in its four stages; expected one of {known}. "
        "Pass the backbone's state dict, not the whole training state."
    )


def _check(state: StateDict, depth: str, path: Path) -> None:
    expected = parameter_shapes(depth)
    found = {name: array.shape for name, array in state.items()}
    wrong = [
        f"{name} ({found.get(name, 'missing')}; expected {expected.get(name, 'no such parameter')})"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{path.name} is not a state dict of an IResNet {depth}: {_some(wrong)}.")
    broken = [name for name, array in state.items() if not np.isfinite(array).all()]
    if broken:
        raise CheckpointError(
            f"{path.name} holds NaN or infinite values in {_some(broken)}; train or fetch it again."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _read_safetensors(path: Path) -> StateDict:
    safetensors = require("safetensors", extra="builder", purpose="Reading .safetensors")
    safetensors_numpy = require("safetensors.numpy", extra="builder", purpose="Reading .safetensors")
    try:
        return dict(safetensors_numpy.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is cut short ({error}); fetch it again."
        ) from error


def _read_torch(path: Path) -> StateDict:
    torch = require(
        "torch", extra="torch", purpose="Reading a .pth checkpoint (a .safetensors needs no torch)"
    )
    try:
        # weights_only refuses everything but tensors, so nothing in the file can run.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, or is not a checkpoint; nothing in it was run. Save the "
            "backbone's state dict alone: torch.save(backbone.state_dict(), 'backbone.pth')."
        ) from error
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint, or is cut short; fetch it again.") from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise CheckpointError(
            f"{path} holds no plain state dict; save the backbone's: "
            "torch.save(backbone.state_dict(), 'backbone.pth')."
        )
    return {str(name): value.float().numpy() for name, value in loaded.items()}
