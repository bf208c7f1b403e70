"""Say what an ONNX file is, what its callers must do, and what a build would fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from arcface_client.models.manifest import SourceInfo
from arcface_client.models.normalisation import RAW

from ..errors import NotArcFaceError
from ..graph.serving import is_serving_graph
from ..graph.signature import describe_shape
from .fixes import Issue
from .model import SourceModel, identified
from .onnx_file import read_onnx

_OF_ORIGIN: Final = ("sha256", "known_file", "terms", "synthetic", "depth", "seed")


@dataclass(frozen=True)
class Tensor:
    """A graph input or output as the file declares it."""

    name: str
    dtype: str
    shape: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.shape}"


@dataclass(frozen=True)
class Meaning:
    """What the pixels that go in and the numbers that come out mean; ``..._from`` is how that is known."""

    graph_normalises: str
    caller_normalises: str
    caller_from: str
    channels: str
    channels_from: str
    embedding: str
    embedding_dim: int | None
    unit_length: bool


_CONTRACT: Final = "the contract that its metadata names"

_BUILT: Final = Issue(
    "this is a serving graph that arcface-builder wrote",
    "a build refuses it; build from the file it was made from, which its manifest names",
)


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        path: The file.
        origin: Its SHA-256, the published file that it is with its terms, whether its weights are synthetic.
        inputs: Its inputs, without weights.
        outputs: Its outputs.
        batch: Batch dimension as declared, at input and output.
        opset: Version of ONNX's operators.
        ir_version: Version of the file format.
        pixels: What happens to the pixels; None if a build refuses the file before that is known.
        issues: What a build does about each; the last one says why, if the file is refused.
        refused: Whether a build refuses the file.
    """

    path: str
    origin: SourceInfo
    inputs: list[Tensor]
    outputs: list[Tensor]
    batch: tuple[str, str]
    opset: int
    ir_version: int
    pixels: Meaning | None
    issues: list[Issue]
    refused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON takes them, all on one level except tensors and issues."""
        values = asdict(self)
        origin, pixels, values["findings"] = (values.pop(name) for name in ("origin", "pixels", "issues"))
        named = {name: origin[name] for name in _OF_ORIGIN}
        return {**values, **named, **(pixels or dict.fromkeys(field.name for field in fields(Meaning)))}

    def to_text(self) -> str:
        """Give the fields as text for people."""
        origin, pixels = self.origin, self.pixels
        weights = f"synthetic {origin.depth or ''}, seed {origin.seed}: they recognise no one"
        rows = {
            "file": self.path,
            "SHA-256": origin.sha256,
            "known as": f"{origin.known_file} ({origin.terms})" if origin.known_file else "-",
            "weights": weights if origin.synthetic else "-",
            "input": ", ".join(map(str, self.inputs)) or "nothing",
            "output": ", ".join(map(str, self.outputs)) or "nothing",
            "batch": f"{self.batch[0]} in, {self.batch[1]} out",
            "opset": f"{self.opset}, IR version {self.ir_version}",
        }
        if pixels:
            rows |= {
                "graph does": pixels.graph_normalises,
                "caller does": f"{pixels.caller_normalises} (from {pixels.caller_from})",
                "channels": f"{pixels.channels} (from {pixels.channels_from})",
                "embedding": f"{pixels.embedding}, {pixels.embedding_dim or 'D'} numbers",
                "unit length": "yes" if pixels.unit_length else "no: the build adds the L2 normalisation",
            }
        lines = [f"{label:<12}{text}" for label, text in rows.items()]
        lines += ["", *(f"! {issue}" for issue in self.issues)] if self.issues else []
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
    pixels: Meaning | None
    source = SourceModel(proto, identified("onnx", path.name, proto, sha256))
    if is_serving_graph(proto):
        pixels, issues, refused = _serving_graph(outputs), [_BUILT], True
    else:
        pixels, issues, refused = _try_to_build(source)
    return Inspection(
        path=str(path),
        origin=source.origin,
        inputs=[_tensor(value) for value in inputs],
        outputs=[_tensor(value) for value in outputs],
        batch=(_batch(inputs), _batch(outputs)),
        opset=declared.graph.opset_imports.get("", 1),
        ir_version=proto.ir_version,
        pixels=pixels,
        issues=issues,
        refused=refused,
    )


def _try_to_build(source: SourceModel) -> tuple[Meaning | None, list[Issue], bool]:
    """Do what a build does, so that both refuse the same files."""
    pixels: Meaning | None = None
    issues: list[Issue] = []
    try:
        network, graph = source.network, source.preprocessing
        issues = [*network.issues]
        does = "more than to normalise by channel" if graph is None else str(graph.normalisation)
        pixels = Meaning(
            graph_normalises="nothing" if graph and graph.normalisation == RAW else does,
            caller_normalises=str(source.caller),
            caller_from=source.caller_from,
            channels=source.channels,
            channels_from=source.channels_from,
            embedding=network.output.name,
            embedding_dim=network.output.dim,
            unit_length=network.unit_length,
        )
        return pixels, [*dict.fromkeys((*source.issues, *source.warnings))], False
    except NotArcFaceError as error:
        return pixels, [*issues, Issue("a build refuses it", str(error))], True


def _serving_graph(outputs: list[ir.Value]) -> Meaning:
    """What is known of a serving graph of this project, whatever it was made from."""
    (output,) = outputs
    dim = output.shape[-1] if output.shape is not None else None
    return Meaning(
        graph_normalises="all that its source model wants",
        caller_normalises="nothing: uint8 crops as OpenCV gives them",
        caller_from=_CONTRACT,
        channels="BGR",
        channels_from=_CONTRACT,
        embedding=str(output.name),
        embedding_dim=dim if isinstance(dim, int) else None,
        unit_length=True,
    )


def _tensor(value: ir.Value) -> Tensor:
    return Tensor(str(value.name), str(value.dtype), describe_shape(value))


def _batch(values: list[ir.Value]) -> str:
    return str(values[0].shape[0]) if values and values[0].shape else "?"
