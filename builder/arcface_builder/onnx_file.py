"""Read ONNX files, whole or with a clear error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from .errors import NotOnnxError


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
    return model, hashlib.sha256(content).hexdigest()


def has_external_data(path: Path) -> bool:
    """Whether a model that ``read_onnx`` could read has weights in files beside it."""
    model = onnx.load_model(path, load_external_data=False)
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
