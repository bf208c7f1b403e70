"""An ONNX file: read whole or with a clear error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx_ir.passes import common as passes

from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..errors import NotOnnxError
from ..graph.edit import session

_Part = TypeVar("_Part", bound=Message)

ONNX: Final = "an ONNX file; use --onnx-path"
CHECKPOINT: Final = "a checkpoint; use --checkpoint"
LFS_POINTER: Final = "a Git LFS pointer; run `git lfs pull`"


def kind_of(start: bytes) -> str | None:
    """What a file is by its first bytes, with the way to use it; None for any other one."""
    if start.startswith(b"version https://git-lfs"):
        return LFS_POINTER
    # torch.save writes a zip archive or a pickle; safetensors the length of its JSON header.
    if start.startswith((b"PK", b"\x80")) or start[5:9] == b"\0\0\0{":
        return CHECKPOINT
    return ONNX if start.startswith(b"\x08") else None  # ONNX: the field ir_version


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read a model with its external data.

    What ONNX Runtime takes and other tools do not (nodes out of order, the domain spelt "ai.onnx") is written
    as all of them take it.

    Returns:
        The model, and the SHA-256 of its file followed by the external data.

    Raises:
        NotOnnxError: The file is missing, is not an ONNX model, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotOnnxError(f"Cannot read {path}: {error.strerror}; expected an ONNX file.") from error
    if (kind := kind_of(content)) in (CHECKPOINT, LFS_POINTER):
        raise NotOnnxError(f"{path} is {kind}.")
    try:
        model = onnx.load_model_from_string(content)
        _spell_as_all_tools_do(model)
    except (DecodeError, UnicodeDecodeError) as error:  # the second is of a name
        raise NotOnnxError(
            f"{path} ({len(content):,} bytes) is not an ONNX model or is cut short; "
            "compare its size and SHA-256 with the publisher's and fetch it again."
        ) from error
    if not model.graph.node:
        raise NotOnnxError(f"{path} ({len(content):,} bytes) holds no ONNX graph; expected an ONNX model.")
    sha256 = hashlib.sha256(content)
    for tensor in _parts(model, onnx.TensorProto):
        if uses_external_data(tensor):
            tensor.raw_data = _external_data(tensor, path)
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            sha256.update(tensor.raw_data)
    if all(opset.domain for opset in model.opset_import):
        raise NotOnnxError(f"{path} does not say which opset of ONNX it is written in; export it again.")
    return _checked(model, path), sha256.hexdigest()


def _external_data(tensor: onnx.TensorProto, path: Path) -> bytes:
    """Read the bytes of a tensor of the file at ``path`` from another file.

    Links are followed, since Hugging Face's cache consists of them and onnx's own loader refuses them. As
    there, a name must not lead out of the folder: a model from elsewhere could read any file.
    """
    try:
        info = ExternalDataInfo(tensor)
        length = ir.serde.deserialize_tensor(tensor).nbytes
        if info.length not in (None, length):
            raise ValueError(f"{info.length:,} bytes instead of {length:,}")
        name = Path(info.location)
        if "\0" in info.location:
            raise ValueError("a NUL in its file's name")
    except (TypeError, ValueError) as error:
        raise NotOnnxError(
            f"{path} is damaged: the place that it gives for weight {tensor.name!r} is wrong ({error}); "
            "fetch or export it again."
        ) from error
    if name.is_absolute() or ".." in name.parts:
        raise NotOnnxError(
            f"{path} keeps weights in {info.location}, outside its own folder, and such files are not read; "
            "move it beside the model, and export the model again."
        )
    # Beside the link that the user named, or else beside what it leads to.
    folders = (path.parent, path.resolve().parent)
    data = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    try:
        with data.open("rb") as file:
            file.seek(info.offset or 0)
            content = file.read(min(length, data.stat().st_size))
    except OSError as error:
        raise NotOnnxError(
            f"{path} keeps its weights in another file, and {data} cannot be read ({error.strerror}); "
            "fetch both and put them beside each other."
        ) from error
    if len(content) < length:
        raise NotOnnxError(
            f"{data} ({data.stat().st_size:,} bytes) is cut short: weight {tensor.name!r} of {path.name} "
            f"ends at byte {(info.offset or 0) + length:,}; fetch it again."
        )
    return content


def _parts(message: Message, kind: type[_Part]) -> Iterator[_Part]:
    """All messages of a kind in another one, at any depth."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                if isinstance(part, kind):
                    yield part
                if not isinstance(part, onnx.TensorProto):
                    yield from _parts(part, kind)


def _spell_as_all_tools_do(model: onnx.ModelProto) -> None:
    named: list[onnx.OperatorSetIdProto | onnx.NodeProto] = []
    named += [*_parts(model, onnx.OperatorSetIdProto), *_parts(model, onnx.NodeProto)]
    for part in named:
        if part.domain == "ai.onnx":
            part.domain = ""
        if isinstance(part, onnx.NodeProto):
            part.name = str(part.name)  # protobuf gives bytes where it is not UTF-8
    for graph in _parts(model, onnx.GraphProto):
        graph.name = graph.name or "graph"
        names = [tensor.name for tensor in graph.initializer]
        for index in reversed(range(len(names))):
            if names.index(names[index]) < index:  # ONNX Runtime takes the first
                del graph.initializer[index]


def _checked(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(_without_fixable_issues(model))
        for tensor in model.graph.initializer:  # before 1.23 the checker did not notice missing bytes
            ir.from_proto(tensor).numpy()
        ir.from_proto(model)
    except (onnx.checker.ValidationError, ValueError, ir.serde.SerdeError) as error:
        try:
            session(model.SerializeToString())
            in_order = ir.from_proto(model)
        except (*RUN_ERRORS, ir.serde.SerdeError):
            reason = " ".join(str(error).split("==>")[0].split())
            raise NotOnnxError(
                f"{path} is damaged or breaks ONNX's rules ({reason}); compare its size and SHA-256 "
                "with the publisher's, and fetch or export it again."
            ) from error
        passes.TopologicalSortPass()(in_order)
        return ir.to_proto(in_order)
    return model


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
