"""Change a copy of a source graph without changing what it computes.

Three kinds of changes: what keeps ONNX Runtime from running a file at all, float16 that is computed in
float32, and what lets a graph be folded and carry any batch. ``network`` and ``model`` compare the result
with the source as ONNX Runtime runs it, and drop what does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ..errors import NotArcFaceError
from ..graph.edit import (
    BATCH,
    IR_VERSION,
    OPSET,
    bypass,
    constant,
    first_line,
    initializer,
    set_constant,
    values_of,
)
from ..graph.opset import CANNOT_CONVERT, in_opset

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of values in a run, by name."""

OLDEST_OPSET: Final = 9
"""The first opset that has every operator of a wrapped graph."""

_RANDOM: Final = ("Random", "Bernoulli", "Multinomial")
_KEPT: Final = ("QuantizeLinear", "DequantizeLinear")  # weights stay in int8
_PASSING: Final = ("Dropout", "Identity")


@dataclass(frozen=True)
class Issue:
    """An issue of a source file, and what the build does about it.

    Attributes:
        problem: The issue.
        remedy: What the build does.
        when_run: What happens when the file is run as it is. "rounds": in float16, where the build computes
            in float32.
    """

    problem: str
    remedy: str
    when_run: Literal["sound", "may fail", "rounds"] = "sound"

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


def check_inference(model: ir.Model) -> None:
    """Refuse a network that was exported in training mode: its embeddings depend on the batch, or on chance.

    Raises:
        NotArcFaceError: It was; the message names the node.
    """
    for node in model.graph.all_nodes():
        training = node.attributes.get_int("training_mode", 0) == 1
        if node.op_type == "Dropout" and len(node.inputs) > 2:
            flag = constant(node.inputs[2])
            training = flag is not None and bool(flag.all())
        elif node.op_type == "BatchNormalization":
            training |= sum(bool(value.name) for value in node.outputs) > 1
        if training:
            raise NotArcFaceError(
                f"{node.op_type} {node.name!r} is in training mode, so that an embedding depends on the rest "
                "of its batch or on chance. Export the network again after `network.eval()`, without "
                "training=TrainingMode.TRAINING."
            )


def prepare(model: ir.Model) -> list[Issue]:
    """Bring a model into the form that all edits expect: no functions, no weights among its inputs."""
    issues = []
    if model.functions:
        passes.InlinePass()(model)
        issues.append(Issue("parts of the graph are written as ONNX functions", "they are inlined"))
    listed = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    if listed:
        passes.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, 4)  # before that every weight had to be an input
        problem = f"{len(listed)} weights are listed as graph inputs, which keeps runtimes from folding them"
        issues.append(Issue(problem, "they become constants"))
    return issues


def free_batch(model: ir.Model) -> list[Issue]:
    """What a model declares as its batch, and what a serving graph does."""
    issues = []
    for side, value in (("input", model.graph.inputs[0]), ("output", model.graph.outputs[0])):
        dim = value.shape[0] if value.shape else None
        if str(dim) != BATCH:
            declared = f"fixed to {dim}" if isinstance(dim, int) and dim > 0 else f"declared as {dim}"
            issues.append(Issue(f"the {side}'s batch dimension is {declared}", f"it becomes {BATCH!r}"))
    return issues


def fix_to_run(model: ir.Model) -> list[Issue]:
    """Fix what keeps ONNX Runtime from running a file; gives nothing if it finds no such issue.

    Raises:
        NotArcFaceError: A batch norm has statistics for every pixel.
    """
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return [*_spatial_batch_norms(model), *_prelu_slopes(model)]


def widen(model: ir.Model) -> list[Issue]:
    """Compute in float32 instead of float16; the weights keep their exact values."""
    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    weights = [value for value in model.graph.initializers.values() if value.dtype == half]
    casts = [
        node for node in model.graph if node.op_type == "Cast" and node.attributes["to"].as_int() == half
    ]
    if not weights and not casts and model.graph.inputs[0].dtype != half:
        return []
    for value in weights:
        array = constant(value)
        if array is not None:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.dtype = full
    for node in casts:
        node.attributes["to"] = ir.AttrInt64("to", full)
    computed = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.inputs, *computed):
        if value.dtype == half:
            value.dtype = full
    problem = f"it computes in float16 ({len(weights)} weights)"
    return [Issue(problem, "computed in float32; the weights keep their values", "rounds")]


def simplify(model: ir.Model, shapes: Shapes, batch: int) -> tuple[ir.Model, list[Issue]]:
    """Rewrite what keeps a graph from being folded, and from carrying another batch than it was exported for.

    Args:
        model: A prepared model, which is changed.
        shapes: Shapes of the inputs and outputs of its Reshape nodes in a run.
        batch: The batch of that run.

    Returns:
        The model in opset 17, or in its own if that is newer, and what was changed.
    """
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model, issues = raised(model, below=OPSET)
    issues += [*_computed_weights(model), *_reshapes(model, shapes, batch)]
    for node in [node for node in model.graph if node.op_type in _PASSING]:
        if not any(mask.uses() for mask in node.outputs[1:]):
            bypass(node)
    return model, issues


def raised(model: ir.Model, *, below: int) -> tuple[ir.Model, list[Issue]]:
    """Convert a model of an older opset to 17, if ONNX's converter can; else it stays as it is."""
    opset = model.graph.opset_imports.get("", 1)
    if opset >= below:
        return model, []
    try:
        converted = in_opset(model, OPSET, IR_VERSION)
    except CANNOT_CONVERT as error:
        return model, [Issue(f"opset {opset}", f"kept: it cannot be converted ({first_line(error)})")]
    remedy = f"converted to {OPSET}, which TensorRT 8.5 and ONNX Runtime both know"
    return converted, [Issue(f"opset {opset}", remedy)]


def is_random(node: ir.Node) -> bool:
    """Whether a node draws numbers."""
    return node.op_type.startswith(_RANDOM)


def image_reshapes(model: ir.Model) -> list[ir.Node]:
    """The Reshape nodes that the image's data goes through, but not those of its shape or of weights."""
    reached, found = {*model.graph.inputs}, []
    for node in model.graph:
        if node.op_type not in ("Shape", "Size") and not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
            if node.op_type == "Reshape" and node.inputs[0] in reached:
                found.append(node)
    return found


def _spatial_batch_norms(model: ir.Model) -> Iterator[Issue]:
    count = 0
    for node in model.graph:
        if node.op_type != "BatchNormalization" or "spatial" not in node.attributes:
            continue
        if node.attributes.pop("spatial").as_int() == 0:
            scale = constant(node.inputs[1])
            if scale is None or scale.ndim != 1:
                raise NotArcFaceError(
                    f"Batch norm {node.name!r} has statistics for every pixel (spatial=0); expected one for "
                    "each channel. Export the model again with a current exporter."
                )
            count += 1
    if count:
        yield Issue(
            f"{count} batch norms say spatial=0 but hold one value for each channel (MXNet's exporter)",
            "the attribute is dropped",
            "may fail",
        )


def _prelu_slopes(model: ir.Model) -> Iterator[Issue]:
    count = 0
    for node in model.graph:
        if node.op_type == "PRelu":
            slope = constant(node.inputs[1])
            if slope is not None and slope.ndim == 1 and slope.size > 1 and _is_map(node.inputs[0]):
                set_constant(node, 1, slope.reshape(-1, 1, 1), "by_channel")
                count += 1
    if count:
        yield Issue(
            f"{count} PRelu slopes are [C], which broadcast along the width",
            "they become [C, 1, 1]",
            "may fail",
        )


def _is_map(value: ir.Value | None) -> bool:
    """Whether a value comes from a convolution by ops that keep the layout [N, C, H, W]."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Conv":
            return True
        if node.op_type not in ("Add", "BatchNormalization", "Identity", "Dropout", "PRelu", "Relu"):
            return False
        value = node.inputs[0]
    return False


def _computed_weights(model: ir.Model) -> Iterator[Issue]:
    """Compute what does not depend on the image, once."""
    fixed, nodes = {*model.graph.initializers.values()}, []
    for node in model.graph:
        kept = node.op_type in _KEPT or is_random(node)
        subgraphs = any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
        if node.inputs and not kept and not subgraphs and fixed.issuperset({*node.inputs} - {None}):
            fixed.update(node.outputs)
            nodes.append(node)
    read = [
        value
        for node in nodes
        for value in node.outputs
        if any(use.node not in nodes for use in value.uses())
    ]
    if not read:
        return
    for value, array in zip(read, values_of(model, [str(value.name) for value in read]), strict=True):
        computed = initializer(model.graph, f"{value.name}.computed", array)
        ir.convenience.replace_all_uses_with(value, computed)
    passes.RemoveUnusedNodesPass()(model)
    yield Issue(f"{len(read)} weights are computed in the graph", "they are computed once, at the build")


def _reshapes(model: ir.Model, shapes: Shapes, batch: int) -> Iterator[Issue]:
    """Free the batch of reshapes that were exported for one batch."""
    fixed = 0
    for node in image_reshapes(model):
        before, after = (
            shapes.get(str(value.name), ()) if value is not None else ()
            for value in (node.inputs[0], node.outputs[0])
        )
        shape = constant(node.inputs[1])
        if before[:1] == (batch,) and after == (batch, math.prod(before[1:])):
            # Flatten does the same for any batch.
            flatten = ir.node("Flatten", [node.inputs[0]], {"axis": 1}, name=f"{node.name}.flatten")
            model.graph.insert_before(node, flatten)
            node.replace_input_with(0, flatten.outputs[0])
            bypass(node)
            fixed += shape is not None and shape[0] > 0
        elif (
            shape is not None
            and shape.size > 1
            and shape[0] > 0
            and node.attributes.get_int("allowzero", 0) == 0
        ):
            if before[:1] == (batch,) == after[:1]:
                leading = 0  # as the input has it
            elif -1 not in shape:
                leading = -1
            else:
                continue
            set_constant(node, 1, np.concatenate([[leading], shape[1:]]).astype(np.int64), "any_batch")
            fixed += 1
    if fixed:
        yield Issue(f"{fixed} Reshape nodes fix the batch to a number", "they take it from their input")
