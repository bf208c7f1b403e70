"""Say what an ONNX file is, what its callers must do, and what a build would mend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from .ends import check_ends, describe_shape
from .known_files import AMBIGUOUS_NAMES, KNOWN_FILES
from .normalisation import RAW
from .onnx_file import has_external_data, read_onnx
from .repairs import Finding
from .serving_graph import is_unit_length
from .source_model import Origin, SourceModel
from .sources import is_serving_graph


@dataclass(frozen=True)
class Tensor:
    """A graph input or output as the file declares it."""

    name: str
    dtype: str
    shape: str


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        path: The file.
        sha256: Its SHA-256.
        known_file: The published file that it is.
        terms: That file's terms of use.
        inputs: Its inputs, weights left out.
        outputs: Its outputs.
        batch: Batch dimension as declared, at input and output.
        opset: Version of ONNX's operators.
        ir_version: Version of the file format.
        graph_normalises: What the graph does to the pixels before its first convolution.
        caller_normalises: What the caller must do.
        caller_from: How that is known.
        channels: Channel order that the caller must give.
        unit_length: The output is L2-normalised already.
        findings: Problems, and what the build does about each.
    """

    path: str
    sha256: str
    known_file: str | None
    terms: str | None
    inputs: list[Tensor]
    outputs: list[Tensor]
    batch: tuple[str, str]
    opset: int
    ir_version: int
    graph_normalises: str
    caller_normalises: str
    caller_from: str
    channels: str
    unit_length: bool
    findings: list[Finding]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON takes them."""
        return asdict(self)

    def to_text(self) -> str:
        """Give the fields as a person reads them."""
        rows = {
            "file": self.path,
            "SHA-256": self.sha256,
            "known as": f"{self.known_file} ({self.terms})" if self.known_file else "-",
            "input": ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in self.inputs),
            "output": ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in self.outputs),
            "batch": f"{self.batch[0]} in, {self.batch[1]} out",
            "opset": f"{self.opset}, IR version {self.ir_version}",
            "graph does": self.graph_normalises,
            "caller does": f"{self.caller_normalises} (from {self.caller_from})",
            "channels": self.channels,
            "unit length": "yes" if self.unit_length else "no: the build adds the L2 normalisation",
        }
        lines = [f"{label:<12}{text}" for label, text in rows.items()]
        lines += ["", *(f"! {finding}" for finding in self.findings)] if self.findings else []
        return "\n".join(lines)


def inspect(path: Path) -> Inspection:
    """Inspect an ONNX file; it is not changed.

    Raises:
        NotOnnxError: It cannot be read as an ONNX model.
        NotArcFaceError: It is no ArcFace, or is written in a way that a build cannot mend.
    """
    proto, sha256 = read_onnx(path)
    declared = ir.from_proto(proto)
    check_ends(declared)
    source = SourceModel(proto, Origin("onnx", path.name, sha256))
    known = KNOWN_FILES.get(sha256)
    graph = source.prefix.normalisation
    inputs = [value for value in declared.graph.inputs if value.name not in declared.graph.initializers]
    return Inspection(
        path=str(path),
        sha256=sha256,
        known_file=known.name if known else None,
        terms=known.terms if known else None,
        inputs=[_tensor(value) for value in inputs],
        outputs=[_tensor(value) for value in declared.graph.outputs],
        batch=(_batch(inputs[0]), _batch(declared.graph.outputs[0])),
        opset=declared.graph.opset_imports.get("", 1),
        ir_version=proto.ir_version,
        graph_normalises="nothing" if graph == RAW else str(graph),
        caller_normalises=str(source.caller),
        caller_from=source.caller_from,
        channels=source.prefix.input_channels,
        unit_length=is_unit_length(source.mended),
        findings=[*_file_findings(path, proto, sha256), *source.findings],
    )


def _file_findings(path: Path, proto: onnx.ModelProto, sha256: str) -> list[Finding]:
    """What the file says apart from its graph."""
    findings = []
    if is_serving_graph(proto):
        findings.append(
            Finding(
                "this is a serving graph that arcface-builder wrote: BGR order is in its weights",
                "the build refuses it; build from the file it was made from, which its manifest names",
            )
        )
    if sha256 not in KNOWN_FILES and path.name in AMBIGUOUS_NAMES:
        findings.append(
            Finding(
                f"the name {path.name} does not tell which weights these are: {AMBIGUOUS_NAMES[path.name]}",
                "the manifest records the SHA-256; compare it with the publisher's",
            )
        )
    if has_external_data(path):
        findings.append(Finding("the weights lie in files of their own", "they go into the one served file"))
    return findings


def _tensor(value: ir.Value) -> Tensor:
    return Tensor(str(value.name), str(value.dtype), describe_shape(value))


def _batch(value: ir.Value) -> str:
    return "?" if value.shape is None else str(value.shape[0])
