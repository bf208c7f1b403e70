"""The two ends of a source graph: is it an ArcFace at all, and how does it declare itself."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from arcface_client.contract import CROP_SIZE, EMBEDDING_DIM

from ..errors import NotArcFaceError

_REAL: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def check_ends(model: ir.Model) -> None:
    """Check that a model takes one 112x112 colour image and gives one embedding of 512 numbers.

    Raises:
        NotArcFaceError: It does not.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    outputs = list(model.graph.outputs)
    if len(inputs) == len(outputs) == 1 and _takes_crops(inputs[0]) and _gives_embeddings(outputs[0]):
        return
    raise NotArcFaceError(
        f"The model takes {_describe(inputs)} and gives {_describe(outputs)}; an ArcFace model takes "
        f"[N, 3, {CROP_SIZE}, {CROP_SIZE}] of float32, float16 or uint8 and gives [N, {EMBEDDING_DIM}] of "
        "float32 or float16. Pass the recognition model itself."
    )


def _takes_crops(value: ir.Value) -> bool:
    shapes = ((None, 3, CROP_SIZE, CROP_SIZE), (None, CROP_SIZE, CROP_SIZE, 3))
    return value.dtype in (*_REAL, ir.DataType.UINT8) and any(_fits(value, shape) for shape in shapes)


def _gives_embeddings(value: ir.Value) -> bool:
    # A file may leave the shape out; then running it tells.
    return value.dtype in _REAL and (value.shape is None or _fits(value, (None, EMBEDDING_DIM)))


def _fits(value: ir.Value, shape: tuple[int | None, ...]) -> bool:
    """Whether the declared shape has this rank and, where it is a number, these numbers."""
    dims = list(value.shape or ())
    return len(dims) == len(shape) and all(
        not is_size(dim) or want in (None, dim) for dim, want in zip(dims, shape, strict=True)
    )


def is_size(dim: int | ir.SymbolicDim | None) -> bool:
    """Whether a dimension is a number that can be one."""
    return isinstance(dim, int) and dim > 0


def _describe(values: list[ir.Value]) -> str:
    return (
        " + ".join(f"{value.name!r} {value.dtype} {describe_shape(value)}" for value in values) or "nothing"
    )


def describe_shape(value: ir.Value) -> str:
    """The declared shape as a person reads it: "[N, 3, 112, 112]"."""
    return "of unknown shape" if value.shape is None else f"[{', '.join(str(dim) for dim in value.shape)}]"
