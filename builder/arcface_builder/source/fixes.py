"""Fix a copy of a source graph: what exporters get wrong, corrected without changing what it computes.

Each fix looks for one issue, removes it, and reports it; ``inspect`` shows the issues, and ``build`` serves
the fixed graph. It runs in ONNX Runtime and TensorRT at any batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common as passes

from arcface_client.contract import EMBEDDING_DIM

from ..errors import NotArcFaceError
from ..graph.edit import (
    BATCH,
    IR_VERSION,
    OPSET,
    bypass,
    constant,
    first_line,
    image_dims,
    set_constant,
    tidy,
)
from .onnx_file import check_io_signature, is_size


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


def fix_issues(proto: onnx.ModelProto) -> tuple[ir.Model, list[Issue]]:
    """Fix a copy of a model.

    Returns:
        The fixed model (opset 17, free batch dimension, float32, nothing unused), and its issues.

    Raises:
        NotArcFaceError: The model does not take one image and give one embedding, or is written in a way that
            cannot be fixed.
    """
    model = ir.from_proto(proto)
    issues = [*_inline_functions(model), *_initialisers_as_inputs(model)]
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    issues += _spatial_batch_norms(model)
    check_io_signature(model)
    model, converted = _convert_opset(model)
    issues += [*converted, *_halves(model)]
    _remove_passing_nodes(model)
    issues += [*_prelu_slopes(model), *_reshapes(model), *_batch_dimension(model)]
    tidy(model)
    return model, issues


def _inline_functions(model: ir.Model) -> Iterator[Issue]:
    if model.functions:
        passes.InlinePass()(model)
        yield Issue("parts of the graph are written as ONNX functions", "they are inlined")


def _initialisers_as_inputs(model: ir.Model) -> Iterator[Issue]:
    listed = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    if listed:
        passes.RemoveInitializersFromInputsPass()(model)
        yield Issue(
            f"{len(listed)} weights are listed as graph inputs, which keeps runtimes from folding them",
            "they become constants",
        )


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


def _convert_opset(model: ir.Model) -> tuple[ir.Model, list[Issue]]:
    opset = model.graph.opset_imports.get("", 1)
    if opset == OPSET:
        model.ir_version = IR_VERSION
        return model, []
    proto = ir.to_proto(model)
    # The converter expects the weights of IR versions below 4 among the inputs.
    proto.ir_version = max(proto.ir_version, 4)
    try:
        proto = version_converter.convert_version(proto, OPSET)
    except (version_converter.ConvertError, RuntimeError) as error:
        raise NotArcFaceError(
            f"Opset {opset} cannot be converted to {OPSET} ({first_line(error)}); "
            f"export the model with opset 11 to {OPSET}."
        ) from error
    proto.ir_version = IR_VERSION
    return ir.from_proto(proto), [
        Issue(
            f"opset {opset}",
            f"converted to {OPSET}, which TensorRT 8.5 and ONNX Runtime both know",
            "may fail" if opset > OPSET else "sound",
        )
    ]


def _halves(model: ir.Model) -> Iterator[Issue]:
    """Compute in float32 instead of float16; the weights keep their exact values."""
    count = 0
    for value in model.graph.initializers.values():
        array = constant(value)
        if array is not None and array.dtype == np.float16:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
            count += 1
    casts = [
        node
        for node in model.graph
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT16
    ]
    if not count and not casts and model.graph.inputs[0].dtype != ir.DataType.FLOAT16:
        return
    for node in casts:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    computed = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.inputs, *computed):
        if value.dtype == ir.DataType.FLOAT16:
            value.dtype = ir.DataType.FLOAT
    yield Issue(
        f"it computes in float16 ({count} weights)",
        "computed in float32; the weights keep their values",
        "rounds",
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


def _remove_passing_nodes(model: ir.Model) -> None:
    """Remove Dropout and Identity, which pass on their input in inference."""
    for node in [node for node in model.graph if node.op_type in ("Dropout", "Identity")]:
        if not any(mask.uses() for mask in node.outputs[1:]):
            bypass(node)


def _reshapes(model: ir.Model) -> Iterator[Issue]:
    """Free the batch of reshapes that were exported with a batch of one."""
    fixed = 0
    for node in [node for node in model.graph if node.op_type == "Reshape"]:
        shape = constant(node.inputs[1])
        if _makes_matrix(node):
            # Flatten does the same for any batch.
            flatten = ir.node("Flatten", [node.inputs[0]], {"axis": 1}, name=f"{node.name}.flatten")
            model.graph.insert_before(node, flatten)
            node.replace_input_with(0, flatten.outputs[0])
            bypass(node)
            fixed += shape is not None and shape[0] > 0
        elif shape is not None and shape.size > 1 and shape[0] == 1:
            set_constant(node, 1, np.concatenate([[0], shape[1:]]).astype(np.int64), "any_batch")
            fixed += 1
    if fixed:
        yield Issue(f"{fixed} Reshape nodes fix the batch to a number", "they take it from their input")


def _makes_matrix(node: ir.Node) -> bool:
    """Whether a Reshape puts all of an image into one row; any other matrix is left as it is."""
    shape = constant(node.inputs[1])
    if shape is not None:
        return shape.size == 2 and shape[0] in (1, 0, -1)
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    return producer is not None and producer.op_type == "Concat" and len(producer.inputs) == 2


def _batch_dimension(model: ir.Model) -> Iterator[Issue]:
    for side, value in (("input", model.graph.inputs[0]), ("output", model.graph.outputs[0])):
        dim = value.shape[0] if value.shape is not None else None
        if str(dim) != BATCH:
            declared = f"fixed to {dim}" if is_size(dim) else f"declared as {dim}"
            yield Issue(f"the {side}'s batch dimension is {declared}", f"it becomes {BATCH!r}")
    image, embedding = model.graph.inputs[0], model.graph.outputs[0]
    image.shape, embedding.shape = ir.Shape((BATCH, *image_dims(image))), ir.Shape((BATCH, EMBEDDING_DIM))
