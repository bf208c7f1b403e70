"""Say what an ONNX file is, what its callers must do, and what a build would mend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir

from ..errors import NotArcFaceError
from ..graph.serving import is_unit_length, serving_graph
from .io_signature import describe_shape
from .known_files import AMBIGUOUS_NAMES, KNOWN_FILES
from .load import is_serving_graph
from .normalisation import RAW
from .onnx_io import has_external_data, read_onnx
from .reference import ReferenceEmbedder
from .source_finding import SourceFinding
from .source_model import Origin, SourceModel


@dataclass(frozen=True)
class Tensor:
    """A graph input or output as the file declares it."""

    name: str
    dtype: str
    shape: str


@dataclass(frozen=True)
class Pixels:
    """What happens to the pixels, and to the embedding at the end.

    Attributes:
        graph_normalises: What the graph does to them before its first convolution.
        caller_normalises: What the caller must do.
        caller_from: How that is known.
        channels: Channel order that the caller must give.
        unit_length: The output is L2-normalised already.
    """

    graph_normalises: str
    caller_normalises: str
    caller_from: str
    channels: str
    unit_length: bool


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        path: The file.
        origin: What it is: its SHA-256, the published file that it is and its terms, whether its weights
            are synthetic.
        inputs: Its inputs, weights left out.
        outputs: Its outputs.
        batch: Batch dimension as declared, at input and output.
        opset: Version of ONNX's operators.
        ir_version: Version of the file format.
        pixels: What happens to the pixels; None if a build refuses the file before that is known.
        findings: Problems, and what the build does about each.
    """

    path: str
    origin: Origin
    inputs: list[Tensor]
    outputs: list[Tensor]
    batch: tuple[str, str]
    opset: int
    ir_version: int
    pixels: Pixels | None
    findings: list[SourceFinding]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON takes them, all on one level but tensors and findings."""
        fields = asdict(self)
        origin, pixels = fields.pop("origin"), fields.pop("pixels")
        named = {name: origin[name] for name in _OF_ORIGIN}
        return {
            **fields,
            **named,
            **(pixels or dict.fromkeys(field.name for field in dataclass_fields(Pixels))),
        }

    def to_text(self) -> str:
        """Give the fields as a person reads them."""
        origin, pixels = self.origin, self.pixels
        rows = {
            "file": self.path,
            "SHA-256": origin.sha256,
            "known as": f"{origin.known_file} ({origin.terms})" if origin.known_file else "-",
            "weights": _weights(origin),
            "input": _listed(self.inputs),
            "output": _listed(self.outputs),
            "batch": f"{self.batch[0]} in, {self.batch[1]} out",
            "opset": f"{self.opset}, IR version {self.ir_version}",
        }
        if pixels:
            rows |= {
                "graph does": pixels.graph_normalises,
                "caller does": f"{pixels.caller_normalises} (from {pixels.caller_from})",
                "channels": pixels.channels,
                "unit length": "yes" if pixels.unit_length else "no: the build adds the L2 normalisation",
            }
        lines = [f"{label:<12}{text}" for label, text in rows.items()]
        lines += ["", *(f"! {finding}" for finding in self.findings)] if self.findings else []
        return "\n".join(lines)


def inspect(path: Path) -> Inspection:
    """Inspect an ONNX file of any kind; it is not changed.

    Raises:
        NotOnnxError: It cannot be read as an ONNX model.
    """
    proto, sha256 = read_onnx(path)
    declared = ir.from_proto(proto)
    inputs = [value for value in declared.graph.inputs if value.name not in declared.graph.initializers]
    outputs = list(declared.graph.outputs)
    source = SourceModel(proto, Origin.of_file("onnx", path.name, proto, sha256))
    pixels, findings = (_SERVED, []) if is_serving_graph(proto) else _tried(source)
    return Inspection(
        path=str(path),
        origin=source.origin,
        inputs=[_tensor(value) for value in inputs],
        outputs=[_tensor(value) for value in outputs],
        batch=(_batch(inputs), _batch(outputs)),
        opset=declared.graph.opset_imports.get("", 1),
        ir_version=proto.ir_version,
        pixels=pixels,
        findings=[*_file_findings(path, proto, sha256), *findings],
    )


_OF_ORIGIN: Final = ("sha256", "known_file", "terms", "synthetic", "depth", "seed")

_SERVED: Final = Pixels(
    graph_normalises="all that its source model wants",
    caller_normalises="nothing: uint8 crops as OpenCV gives them",
    caller_from="the contract that its metadata names",
    channels="BGR",
    unit_length=True,
)
"""A serving graph of this project, whatever it was made from."""


def _tried(source: SourceModel) -> tuple[Pixels | None, list[SourceFinding]]:
    """Do what a build does, up to the comparison; so the two cannot disagree on what is refused."""
    pixels, findings = None, []
    try:
        findings = source.findings
        graph = source.prefix.normalisation
        pixels = Pixels(
            graph_normalises="nothing" if graph == RAW else str(graph),
            caller_normalises=str(source.caller),
            caller_from=source.caller_from,
            channels=source.prefix.input_channels,
            unit_length=is_unit_length(source.mended),
        )
        serving_graph(source.mended, source.normalisation, metadata={})
        ReferenceEmbedder(source)
    except NotArcFaceError as error:
        return pixels, [*findings, SourceFinding("a build refuses it", str(error))]
    return pixels, findings


def _file_findings(path: Path, proto: onnx.ModelProto, sha256: str) -> list[SourceFinding]:
    """What the file says apart from its graph."""
    findings = []
    if is_serving_graph(proto):
        findings.append(
            SourceFinding(
                "this is a serving graph that arcface-builder wrote: BGR order is in its weights",
                "the build refuses it; build from the file it was made from, which its manifest names",
            )
        )
    if sha256 not in KNOWN_FILES and path.name in AMBIGUOUS_NAMES:
        findings.append(
            SourceFinding(
                f"the name {path.name} does not tell which weights these are: {AMBIGUOUS_NAMES[path.name]}",
                "the manifest records the SHA-256; compare it with the publisher's",
            )
        )
    if has_external_data(path):
        findings.append(
            SourceFinding("the weights lie in files of their own", "they go into the one served file")
        )
    return findings


def _tensor(value: ir.Value) -> Tensor:
    return Tensor(str(value.name), str(value.dtype), describe_shape(value))


def _listed(tensors: list[Tensor]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in tensors) or "nothing"


def _batch(values: list[ir.Value]) -> str:
    return str(values[0].shape[0]) if values and values[0].shape else "?"


def _weights(origin: Origin) -> str:
    if not origin.synthetic:
        return "-"
    return f"synthetic {origin.depth or ''}, seed {origin.seed}: they recognise nobody"
