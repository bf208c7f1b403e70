"""Questions and edits that all graph code shares, over onnx_ir's use and definition chains."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common as passes

from arcface_client.contract import INPUT_NAME, OUTPUT_NAME
from arcface_client.runtimes.base import Embed, usable_cores

OPSET: Final = 17
"""The newest opset that TensorRT 8.5's parser knows."""

IR_VERSION: Final = 8
"""The IR version that came with opset 17."""

BATCH: Final = "N"
"""Name of the batch dimension of input and output."""

# A source with a fixed batch makes ONNX Runtime warn on every run; its errors are raised anyway.
_FATAL_ONLY: Final = 4


def parse(graph: bytes) -> ir.Model:
    """Read an ONNX file's content."""
    return ir.from_proto(onnx.load_model_from_string(graph))


def first_line(error: Exception) -> str:
    """What a runtime's error says, without its codes and its stack of frames."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip().splitlines()[0])


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of a value; None if it is computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that uses a value; None if there are others, or the value is an output."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Add a constant to a graph."""
    while name in graph.initializers:  # two nodes shared the old one
        name += "_"
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def set_constant(node: ir.Node, index: int, array: npt.NDArray[Any], suffix: str) -> None:
    """Give a node a new constant as its input of that index; the old one stays for its other users."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if node.graph is None or isinstance(node.graph, ir.Function):
        raise ValueError(f"Node {node.name} is in no graph.")
    value = initializer(node.graph, f"{old.name if old is not None else node.name}.{suffix}", array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def bypass(node: ir.Node) -> None:
    """Remove a node whose first output is its first input."""
    source = node.inputs[0]
    if source is None or node.graph is None:
        raise ValueError(f"Node {node.name} has no input to pass on.")
    ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def session(model: ir.Model | bytes) -> onnxruntime.InferenceSession:
    """Load a model with ONNX Runtime on the CPU; raises one of ``RUN_ERRORS``."""
    content = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = usable_cores()
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def embedder(model: ir.Model | bytes) -> Embed:
    """Load a serving graph with ONNX Runtime on the CPU, to embed batches; raises one of ``RUN_ERRORS``."""
    running = session(model)
    return lambda crops: running.run([OUTPUT_NAME], {INPUT_NAME: crops})[0]


def values_of(
    model: ir.Model, names: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]] | None = None
) -> list[npt.NDArray[Any]]:
    """Run a model for some of its values; raises one of ``RUN_ERRORS``."""
    feeds = dict(feeds or {})
    cut = ir.convenience.extract(model.graph, [*feeds], names)
    return session(ir.Model(cut, ir_version=model.ir_version)).run(None, feeds)  # type: ignore[no-any-return]


def tidy(model: ir.Model) -> None:
    """Drop what nothing uses, and shapes that hold for one batch size only."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.TopologicalSortPass()(model)
