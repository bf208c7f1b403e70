"""Read ONNX files, whole or with a clear error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from ..errors import NotOnnxError


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read a model with its external data, and tell the SHA-256 of the file itself.

    Raises:
        NotOnnxError: The file is missing, is no ONNX model, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotOnnxError(f"Cannot read {path}: {error.strerror}; expected an ONNX file.") from error
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise NotOnnxError(
            f"{path} ({len(content):,} bytes) is no ONNX model or is cut short; "
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
        onnx.checker.check_model(_without_mendable_faults(model))
        for tensor in model.graph.initializer:  # before 1.23 the checker did not see bytes that are missing
            ir.from_proto(tensor).numpy()
    except (onnx.checker.ValidationError, ValueError) as error:
        raise NotOnnxError(
            f"{path} is damaged or breaks ONNX's rules ({_one_line(error)}); compare its size and SHA-256 "
            "with the publisher's, and fetch or export it again."
        ) from error
    return model, hashlib.sha256(content).hexdigest()


def _without_mendable_faults(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker without the faults that a build mends and files in use have."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "BatchNormalization":  # MXNet's exporter writes spatial=0 at any opset
            kept = [attribute for attribute in node.attribute if attribute.name != "spatial"]
            del node.attribute[:]
            node.attribute.extend(kept)
    for value in copy.graph.output:
        value.type.tensor_type.shape.SetInParent()  # runtimes do without, and so does a build
    return copy


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("==>")[0].split())


def has_external_data(path: Path) -> bool:
    """Whether a model that ``read_onnx`` could read has weights in files beside it."""
    model = onnx.load_model(path, load_external_data=False)
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
