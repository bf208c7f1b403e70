"""What a network takes and gives: the image as its file declares it, the embedding as a run shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from arcface_client.contract import CROP_SHAPE, CROP_SIZE

from ..errors import NotArcFaceError, OptionError

_IMAGE_TYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8)
_PLANES: Final = (3, CROP_SIZE, CROP_SIZE)
_SAME: Final = 1e-4  # between numbers of unit vectors


@dataclass(frozen=True)
class Image:
    """The image that a network takes.

    Attributes:
        name: Name of the graph input.
        dtype: Its type.
        channels_last: It is [N, 112, 112, 3], not [N, 3, 112, 112].
        batch: Crops that the file is fixed to; 1 where the batch is free.
    """

    name: str
    dtype: ir.DataType
    channels_last: bool
    batch: int

    @classmethod
    def of(cls, model: ir.Model) -> list[Image]:
        """The image input of a model, in each layout that its declared shape leaves open.

        Raises:
            NotArcFaceError: The model does not take one 112x112 colour image.
        """
        inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        layouts = []
        if len(inputs) == 1 and inputs[0].dtype in _IMAGE_TYPES:
            dims_of = {False: _PLANES, True: CROP_SHAPE}
            layouts = [last for last, dims in dims_of.items() if _fits(inputs[0], dims)]
        if not layouts:
            raise NotArcFaceError(
                f"The model takes {describe(inputs)}; a face network takes [N, 3, {CROP_SIZE}, {CROP_SIZE}] "
                f"or [N, {CROP_SIZE}, {CROP_SIZE}, 3] of float32, float16 or uint8. "
                "Pass the recognition model itself."
            )
        (value,) = inputs
        batch = value.shape[0] if value.shape is not None else None
        size = batch if isinstance(batch, int) and batch > 0 else 1
        return [cls(str(value.name), value.dtype or ir.DataType.FLOAT, last, size) for last in layouts]

    def prepare(self, planes: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """One image [3, 112, 112] in the channel order of the network, as the batch that the file takes."""
        pixels = planes.transpose(1, 2, 0) if self.channels_last else planes
        return np.ascontiguousarray(np.broadcast_to(pixels, (self.batch, *pixels.shape)), self.dtype.numpy())


@dataclass(frozen=True)
class Output:
    """The embedding that a network gives.

    Attributes:
        name: Name of the graph output.
        shape: Its shape in a run of the batch that the file takes.
        dim: Numbers in an embedding.
    """

    name: str
    shape: tuple[int, ...]
    dim: int

    @classmethod
    def choose(cls, runs: Sequence[dict[str, Any]], batch: int, name: str | None) -> Output:
        """Find the output that has the shape of an embedding.

        Args:
            runs: What the network gave in runs with different images, by the name of the output.
            batch: The batch of each run.
            name: The output that the user chose.

        Raises:
            NotArcFaceError: None has that shape, or several have it and differ.
            OptionError: There is no output of that name.
        """
        first = runs[0]
        if name is not None and name not in first:
            raise OptionError(f"The model has no output {name!r}; it gives {_listed(first)}.")
        fitting = [key for key in first if name in (None, key) and _embedding_dim(first[key], batch)]
        if not fitting:
            raise NotArcFaceError(
                f"The model gives {_listed(first)}; expected an embedding, [N, D] or [N, D, 1, 1]. "
                "Pass the recognition model itself."
            )
        # The embedding and the same one at unit length are one embedding.
        rows = [unit_rows(np.stack([run[key].reshape(batch, -1)[0] for run in runs])) for key in fitting]
        if any(row.shape != rows[0].shape or np.abs(row - rows[0]).max() > _SAME for row in rows):
            raise NotArcFaceError(
                f"The model gives {_listed({key: first[key] for key in fitting})}, and each could be the "
                f"embedding; choose one with --output, for example --output {fitting[0]}."
            )
        array = first[fitting[0]]
        return cls(fitting[0], array.shape, _embedding_dim(array, batch))


def describe_shape(value: ir.Value) -> str:
    """The declared shape as text: "[N, 3, 112, 112]"."""
    return "of unknown shape" if value.shape is None else f"[{', '.join(str(dim) for dim in value.shape)}]"


def describe(values: Iterable[ir.Value]) -> str:
    """Inputs or outputs as text."""
    return (
        " + ".join(f"{value.name!r} {value.dtype} {describe_shape(value)}" for value in values) or "nothing"
    )


def _fits(value: ir.Value, image: tuple[int, ...]) -> bool:
    """Whether the declared shape is a batch of such images, as far as it has numbers."""
    if value.shape is None:
        return True
    dims = list(value.shape)[1:]
    return len(dims) == len(image) and all(
        dim == want or not (isinstance(dim, int) and dim > 0) for dim, want in zip(dims, image, strict=True)
    )


def _embedding_dim(array: Any, batch: int) -> int:
    """The numbers of an embedding in an output [N, D], [N, D, 1, 1] or, of one image, [D]; else 0."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.size % batch:
        return 0
    dim = array.size // batch
    inner = array.shape[1:] if array.shape[:1] == (batch,) else array.shape if batch == 1 else ()
    return dim if dim > 1 and dim in inner else 0


def unit_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows [N, D] at length one; NaN where a row has no direction."""
    exact = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True))


def _listed(outputs: dict[str, Any]) -> str:
    return " + ".join(f"{name!r} {list(getattr(array, 'shape', '?'))}" for name, array in outputs.items())
