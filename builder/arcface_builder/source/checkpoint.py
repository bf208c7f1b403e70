"""Read IResNet checkpoints of arcface_torch and of others who train its network, and find their depth."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from arcface_client.contract import EMBEDDING_DIM
from arcface_client.errors import require

from ..errors import CheckpointError
from .iresnet import BLOCKS, parameter_shapes
from .onnx_file import LFS_POINTER, ONNX, kind_of

_SHOWN = 4  # names in an error message
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")

_MARK: Final = "layer1.0.prelu.weight"
"""A parameter that IResNets have, and ResNets have not."""

_OTHER_NETWORKS: Final[Mapping[str, str]] = {
    "conv_sep.layers.0.weight": "arcface_torch's MobileFaceNet (mbf)",
    "conv_6_dw.conv.weight": "a MobileFaceNet",
    "patch_embed.proj.weight": "a vision transformer (ViT)",
    "input_layer.0.weight": "an IR network (AdaFace, CVLFace, face.evoLVe)",
    "conv2d_1a.conv.weight": "FaceNet's Inception-ResNet",
    "layer1.0.conv1.weight": "a ResNet without PReLU",
}
"""Networks by the end of a parameter's name."""

_EXPORT: Final = (
    "torch.onnx.export(network.eval(), (torch.zeros(2, 3, 112, 112),), 'network.onnx', "
    "dynamic_shapes=[{0: 'N'}])"
)

StateDict = dict[str, npt.NDArray[np.float32]]


def read_checkpoint(path: Path) -> tuple[str, StateDict]:
    """Read the network in a checkpoint: a state dict, or what a training framework wrote around one.

    Args:
        path: A ``.safetensors`` file, or anything that ``torch.save`` wrote.

    Returns:
        The depth (a key of ``iresnet.BLOCKS``) and exactly its parameters, float32.

    Raises:
        CheckpointError: The file is unreadable, holds code, or does not hold one IResNet.
        MissingExtraError: Reading it needs torch, which is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}; expected a .pth or .safetensors file.")
    with path.open("rb") as file:
        kind = kind_of(file.read(64))
    if (kind == ONNX and path.suffix != ".safetensors") or kind == LFS_POINTER:
        raise CheckpointError(f"{path} is {kind}.")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    prefix = _prefix(tensors, path)
    names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    state = {
        short: _as_float32(tensors[name])
        for short, name in names.items()
        if not short.endswith("num_batches_tracked")  # not needed
    }
    depth = depth_of(state)
    _check(state, depth, path)
    return depth, state


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
        f"Export another network to ONNX ({_EXPORT}) and pass it with --onnx-path."
    )


def _prefix(names: Mapping[str, object], path: Path) -> str:
    """What stands before the names of the network's parameters, for example "state_dict.module."."""
    prefixes = [name.removesuffix(_MARK) for name in names if name.endswith(_MARK)]
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise CheckpointError(
            f"{path.name} holds {len(prefixes)} networks ({', '.join(prefixes)}); save the one to serve: "
            "torch.save(backbone.state_dict(), 'backbone.pth')."
        )
    if not names:
        raise CheckpointError(
            f"{path.name} holds no weights; save the backbone's: "
            "torch.save(backbone.state_dict(), 'backbone.pth')."
        )
    found = next(
        (network for end, network in _OTHER_NETWORKS.items() if any(name.endswith(end) for name in names)),
        f"a network that is not known here ({_some(list(names))})",
    )
    raise CheckpointError(
        f"{path.name} holds {found}, and only IResNets can be built from a checkpoint. Export it to ONNX "
        f"from the code that made it, {_EXPORT}, and pass it with --onnx-path=network.onnx."
    )


def _check(state: StateDict, depth: str, path: Path) -> None:
    expected = parameter_shapes(depth, len(state.get("fc.bias", range(EMBEDDING_DIM))))
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


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = require("safetensors", extra="builder", purpose="Reading .safetensors")
    safetensors_numpy = require("safetensors.numpy", extra="builder", purpose="Reading .safetensors")
    try:
        return dict(safetensors_numpy.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is cut short ({error}); fetch it again."
        ) from error


def _read_torch(path: Path) -> dict[str, Any]:
    torch = require(
        "torch", extra="torch", purpose="Reading a .pth checkpoint (a .safetensors needs no torch)"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is in the error
            # weights_only refuses everything but tensors, so nothing in the file can run.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, EOFError, RuntimeError) as error:
        if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} holds more than weights, or is not a checkpoint; nothing in it was run. Save the "
                "backbone's state dict alone: torch.save(backbone.state_dict(), 'backbone.pth')."
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint, or is cut short; fetch it again.") from error

    def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(inner, f"{name}.{key}" if name else str(key))

    return dict(flat(loaded, ""))


def _as_float32(tensor: Any) -> npt.NDArray[np.float32]:
    """The array of a NumPy array or of a torch tensor, which may be bfloat16."""
    return np.asarray(tensor if isinstance(tensor, np.ndarray) else tensor.float().numpy(), np.float32)
