"""Write a precision into a serving graph: uint8 in and float32 out as before, the network between in it.

From TensorRT 10 on a network is strongly typed: what the graph says is what runs. TensorRT 8.5 has FP16 and
INT8 flags instead and takes the types of the graph as leave rather than as law; the same graphs suit it, but
for INT8, where it wants everything around the quantised layers in float32 and picks FP16 itself.

The last step, the division by the length, stays in float32 always: it costs nothing and decides over
the contract's "unit length".
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxruntime.transformers.float16 import convert_float_to_float16

from arcface_client.contract import Crops
from arcface_client.models.embedding_space import PRECISIONS

from ..errors import OptionError, PrecisionError
from .batchnorm import affine
from .edit import set_constant
from .quantisation import quantise

_NEXT: Final = {"int8": "fp16", "fp16": "tf32", "bf16": "tf32", "tf32": "fp32"}
"""The next more exact precision; fp32 has none."""

_FROM_AMPERE: Final = {"tf32": "fp32", "bf16": "fp16"}
"""What only GPUs from Ampere on compute in, and what to use on older ones."""

_AMPERE: Final = 80

_FLOAT32_OPS: Final = ["ReduceL2", "Div"]

# The first opset, and the IR version of its time, in which ...
_PER_CHANNEL: Final = (13, 7)  # ... Q/DQ have a scale for each channel
_HALF_SCALES: Final = (19, 9)  # ... the scales of Q/DQ can be float16
_BFLOAT_CONV: Final = (22, 10)  # ... a convolution takes bfloat16


def typed_graph(
    serving_graph: bytes,
    precision: str,
    *,
    calibration: Crops | None = None,
    strongly_typed: bool = True,
) -> bytes:
    """Write a precision into a serving graph.

    Args:
        serving_graph: An ONNX file with the contract's tensors.
        precision: One of ``PRECISIONS``. fp32 and tf32 are the same graph: TF32 is a way to multiply
            float32 numbers, and a flag in every TensorRT.
        calibration: Crops that tell int8 the ranges of its tensors.
        strongly_typed: Whether the TensorRT that reads it types networks strongly.

    Raises:
        OptionError: The precision is unknown, or int8 has no calibration crops.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"Precision {precision!r} is unknown; expected {', '.join(PRECISIONS)}.")
    model = ir.from_proto(onnx.load_model_from_string(serving_graph))
    passes.NameFixPass()(model)  # exporters may leave nodes without a name; what follows names them
    _plain_batch_norms(model)
    if precision == "int8":
        model = quantise(_in_opset(model, *_PER_CHANNEL), calibration_crops(calibration))
        if strongly_typed:
            model = _half(_in_opset(model, *_HALF_SCALES))
    elif precision == "fp16":
        model = _half(model)
    elif precision == "bf16":
        model = _in_opset(model, *_BFLOAT_CONV)
        model = _bfloat(_half(model), model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def fallbacks(precision: str, sm: str) -> list[str]:
    """The more exact precisions that a GPU of an architecture, as "86", has; the next one first."""
    more_exact = []
    while precision in _NEXT:
        precision = _NEXT[precision]
        more_exact.append(precision)
    return [precision for precision in more_exact if _gpu_has(precision, sm)]


def check_gpu_has(precision: str, sm: str) -> None:
    """Check that a GPU of an architecture, as "86", computes in a precision.

    TensorRT builds tf32 for any GPU and runs it as fp32 on an old one, and its inspector does not tell.

    Raises:
        PrecisionError: It does not.
    """
    if not _gpu_has(precision, sm):
        raise PrecisionError(
            f"{precision} needs a GPU of sm{_AMPERE} or newer, and this one is of sm{sm}; "
            f"use {_FROM_AMPERE[precision]}."
        )


def _gpu_has(precision: str, sm: str) -> bool:
    return precision not in _FROM_AMPERE or int(sm) >= _AMPERE


def calibration_crops(calibration: Crops | None) -> Crops:
    """Return the crops that int8 cannot do without.

    Raises:
        OptionError: There are none.
    """
    if calibration is None or not len(calibration):
        raise OptionError(
            "int8 needs face crops to find the ranges of its tensors, and there are none; "
            "give a folder of them with --calibration-dir."
        )
    return calibration


def _plain_batch_norms(model: ir.Model) -> None:
    """Leave scale and shift alone in each batch norm: a variance may be beyond what 16 bits hold."""
    for norm in model.graph:
        parameters = affine(norm) if norm.op_type == "BatchNormalization" else None
        if parameters is None:
            continue
        scale, shift = (array.astype(np.float32) for array in parameters)
        for index, array in enumerate((scale, shift, np.zeros_like(scale), np.ones_like(scale)), start=1):
            set_constant(norm, index, array, "plain")
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    passes.RemoveUnusedNodesPass()(model)


def _half(model: ir.Model) -> ir.Model:
    """Cast the network to float16 with ONNX Runtime's converter."""
    converted = convert_float_to_float16(
        ir.to_proto(model), keep_io_types=True, op_block_list=_FLOAT32_OPS, disable_shape_infer=False
    )
    typed: ir.Model = ir.from_proto(converted)
    typed.graph.sort()  # the converter puts its casts at the end
    _drop_detours(typed)
    # Older converters cast a value anew for each node that reads it.
    passes.CommonSubexpressionEliminationPass()(typed)
    return typed


def _drop_detours(model: ir.Model) -> None:
    """Drop float32 -> float16 -> float32, which the converter leaves between two nodes kept in float32."""
    for cast in [node for node in model.graph if node.op_type == "Cast"]:
        narrow = cast.inputs[0].producer() if cast.inputs[0] is not None else None
        if narrow is None or narrow.op_type != "Cast" or _target(cast) != ir.DataType.FLOAT:
            continue
        source = narrow.inputs[0]
        if source is None or source.dtype not in (ir.DataType.FLOAT, None):
            continue  # None: the converter does not say the type of what it adds
        output = cast.outputs[0]
        if output.is_graph_output():
            # The producer takes over the output's name, which is part of the contract.
            source.name, output.name = output.name, f"{output.name}.detour"
            source.shape = output.shape
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    passes.RemoveUnusedNodesPass()(model)


def _target(cast: ir.Node) -> ir.DataType:
    return ir.DataType(cast.attributes.get_int("to", 0))


def _bfloat(half: ir.Model, exact: ir.Model) -> ir.Model:
    """Turn a float16 graph into a bfloat16 one, with weights rounded from float32 directly."""
    narrow = ir.DataType.BFLOAT16
    for value in half.graph.initializers.values():
        if value.dtype != ir.DataType.FLOAT16 or value.const_value is None:
            continue
        original = exact.graph.initializers[str(value.name)].const_value
        if original is None:
            raise ValueError(f"{value.name} has no weights.")
        value.const_value = ir.tensor(original.numpy().astype(narrow.numpy()), dtype=narrow, name=value.name)
        value.dtype = narrow
    for node in half.graph:
        if node.op_type == "Cast" and _target(node) == ir.DataType.FLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", narrow)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT16:
                output.dtype = narrow
    return half


def _in_opset(model: ir.Model, opset: int, ir_version: int) -> ir.Model:
    """The model in this opset, or in its own if that is newer."""
    if (model.opset_imports.get("") or 0) >= opset:
        return model
    converted: ir.Model = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), opset))
    converted.ir_version = max(ir_version, model.ir_version)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(converted)
    return converted
