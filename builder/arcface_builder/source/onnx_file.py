"""An ONNX file: read whole or with a clear error, and its I/O signature."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from arcface_client.contract import CROP_SIZE, EMBEDDING_DIM

from ..errors import NotArcFaceError, NotOnnxError

_REAL: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read a model with its external data, and give the SHA-256 of the file itself.

    Raises:
        NotOnnxError: The file is missing, is not an ONNX model, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotOnnxError(f"Cannot read {path}: {error.strerror}; expected an ONNX file.") from error
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise NotOnnxError(
            f"{path} ({len(content):,} bytes) is not an ONNX model or is cut short; "
            "compare its size and SHA-256 with the publisher's and fetch it again."
        ) from error
    if not model.graph.node:
        raise NotOnnxError(f"{path} ({len(content):,} bytes) holds no ONNX graph; expected an ONNX model.")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise NotOnnxError(
            f"{path} keeps its weights in other files, and they cannot be read ({error}); "
            "put them beside it as they were published."
        ) from error
    try:
        onnx.checker.check_model(_without_fixable_issues(model))
        for tensor in model.graph.initializer:  # before 1.23 the checker did not notice missing bytes
            ir.from_proto(tensor).numpy()
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split("==>")[0].split())
        raise NotOnnxError(
            f"{path} is damaged or breaks ONNX's rules ({reason}); compare its size and SHA-256 "
            "with the publisher's, and fetch or export it again."
        ) from error
    return model, hashlib.sha256(content).hexdigest()


def check_io_signature(model: ir.Model) -> None:
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


def is_size(dim: int | ir.SymbolicDim | None) -> bool:
    """Whether a dimension is a positive number."""
    return isinstance(dim, int) and dim > 0


def describe_shape(value: ir.Value) -> str:
    """The declared shape as text: "[N, 3, 112, 112]"."""
    return "of unknown shape" if value.shape is None else f"[{', '.join(str(dim) for dim in value.shape)}]"


def _without_fixable_issues(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker without the issues that a build fixes and that files in use have."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "BatchNormalization":  # MXNet's exporter writes spatial=0 at any opset
            kept = [attribute for attribute in node.attribute if attribute.name != "spatial"]
            del node.attribute[:]
            node.attribute.extend(kept)
    for value in copy.graph.output:
        value.type.tensor_type.shape.SetInParent()  # neither runtimes nor a build need it
    return copy


def _takes_crops(value: ir.Value) -> bool:
    shapes = ((None, 3, CROP_SIZE, CROP_SIZE), (None, CROP_SIZE, CROP_SIZE, 3))
    return value.dtype in (*_REAL, ir.DataType.UINT8) and any(_fits(value, shape) for shape in shapes)


def _gives_embeddings(value: ir.Value) -> bool:
    # A file may leave the shape out; then running it shows the shape.
    return value.dtype in _REAL and (value.shape is None or _fits(value, (None, EMBEDDING_DIM)))


def _fits(value: ir.Value, shape: tuple[int | None, ...]) -> bool:
    """Whether the declared shape has this rank and, where it is a number, these numbers."""
    dims = list(value.shape or ())
    return len(dims) == len(shape) and all(
        not is_size(dim) or want in (None, dim) for dim, want in zip(dims, shape, strict=True)
    )


def _describe(values: list[ir.Value]) -> str:
    return (
        " + ".join(f"{value.name!r} {value.dtype} {describe_shape(value)}" for value in values) or "nothing"
    )
