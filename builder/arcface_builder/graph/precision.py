"""Write a precision into a serving graph: uint8 in and float32 out as before, the network in between in it.

From TensorRT 10 on networks are strongly typed: the types of the graph are the types that run. TensorRT 8.5
has FP16 and INT8 flags instead and takes the graph's types as permission; the same graphs suit it, except
for INT8, where everything around the quantised layers has to be float32.

The last step, the division by the length, always stays in float32: it costs nothing, and the contract's
unit length depends on it.

INT8 graphs have Q/DQ pairs, written by ONNX Runtime's static quantiser. Where the pairs are decides the
speed: in front of the convolutions alone, on input and weights, so that a convolution runs in int8 and
PRelu, batch norm and Add in the wider type. The first convolution, with three channels, and the Gemm at the
end, which is bound by memory, stay wide. The ranges leave out one value in ten thousand, since the few
largest values would make the steps of all others coarser.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common as passes
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_infer_metadata, add_pre_process_metadata
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from arcface_client.contract import INPUT_NAME, Crops

from ..errors import OptionError, PrecisionError
from .batchnorm import affine
from .edit import bypass, first_line, parse, set_constant
from .serving import one_crop, takes_one_crop

_NEXT: Final = {"int8": "fp16", "fp16": "tf32", "bf16": "tf32", "tf32": "fp32"}
"""The next more exact precision; fp32 has none."""

_FROM_AMPERE: Final = {"tf32": "fp32", "bf16": "fp16"}
"""Precisions that need an Ampere GPU, and what to use on older ones."""

_AMPERE: Final = 80

_FLOAT32_OPS: Final = [*DEFAULT_OP_BLOCK_LIST, "ReduceL2", "ReduceSumSquare", "LpNormalization"]
"""What float16 does not have, and what sums squares, which it may not hold."""

_INTEGER: Final = re.compile("^(Dynamic)?Quantize|^Dequantize|^QLinear|Integer$")

_CANNOT_CONVERT: Final = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    RuntimeError,  # what ONNX's converter and its shape inference raise besides
)

_MOVES: Final = {"Gather", "Reshape"}

# The first opset, and the IR version of its time, in which ...
_PER_CHANNEL: Final = (13, 7)  # ... Q/DQ have a scale for each channel
_HALF_SCALES: Final = (19, 9)  # ... the scales of Q/DQ can be float16
_BFLOAT_CONV: Final = (22, 10)  # ... a convolution takes bfloat16

_FATAL_ONLY: Final = 4
_WARNINGS: Final = 2  # ONNX Runtime's default

_BATCH: Final = 8  # calibration crops at a time, whose feature maps are in memory at once
_FEW: Final = 100

_QUANTISER_OPTIONS: Final = {
    "ActivationSymmetric": True,  # the only kind that TensorRT has
    "WeightSymmetric": True,
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    # TensorRT quantises the weights itself and adds the bias in the accumulator's precision.
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "CalibPercentile": 99.99,
    "CalibStridedMinMax": 1,  # a histogram after each batch; all batches at once would fill the memory
}

_log = logging.getLogger(__name__)


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
        precision: fp32, tf32, fp16, bf16 or int8. fp32 and tf32 are the same graph: TF32 is a way to
            multiply float32 numbers, and a flag in every TensorRT.
        calibration: Crops for the ranges of int8, uint8 [N, 112, 112, 3], BGR.
        strongly_typed: Whether the TensorRT that reads the graph types networks strongly.

    Raises:
        OptionError: int8 has no calibration crops.
        PrecisionError: The network does not allow the precision.
    """
    model = parse(serving_graph)
    try:
        proto = ir.to_proto(_typed(model, precision, calibration, strongly_typed))
        onnx.checker.check_model(proto, full_check=True)
    except _CANNOT_CONVERT as error:
        raise PrecisionError(
            f"The network cannot be written in {precision} ({first_line(error)}); try another precision. "
            "The ONNX model serves as it is."
        ) from error
    return bytes(proto.SerializeToString(deterministic=True))


def is_quantised(model: ir.Model) -> bool:
    """Whether a network computes in int8 as it is, so that its plans need no calibration."""
    return any(_INTEGER.search(node.op_type) for node in model.graph.all_nodes())


def fallbacks(precision: str, sm: str) -> list[str]:
    """The more exact precisions that a GPU architecture, for example "86", has; the next one first."""
    more_exact = []
    while precision in _NEXT:
        precision = _NEXT[precision]
        more_exact.append(precision)
    return [precision for precision in more_exact if _gpu_has(precision, sm)]


def check_gpu_has(precision: str, sm: str) -> None:
    """Check that a GPU architecture, for example "86", computes in a precision.

    TensorRT builds tf32 for any GPU and runs it as fp32 on an old one, and its inspector does not show it.

    Raises:
        PrecisionError: It does not.
    """
    if not _gpu_has(precision, sm):
        raise PrecisionError(
            f"{precision} needs a GPU of sm{_AMPERE} or newer, and this one is sm{sm}; "
            f"use {_FROM_AMPERE[precision]}."
        )


def calibration_crops(calibration: Crops | None) -> Crops:
    """Return the crops that int8 needs.

    Raises:
        OptionError: There are none.
    """
    if calibration is None or not len(calibration):
        raise OptionError(
            "int8 needs face crops to find the ranges of its tensors, and there are none; "
            "give a folder of them with --calibration-dir."
        )
    return calibration


def _gpu_has(precision: str, sm: str) -> bool:
    return precision not in _FROM_AMPERE or int(sm) >= _AMPERE


def _typed(model: ir.Model, precision: str, calibration: Crops | None, strongly_typed: bool) -> ir.Model:
    if is_quantised(model):
        if precision != "int8":
            raise PrecisionError("The network is quantised already: its plans have --precision int8.")
        return one_crop(model)
    one_at_a_time = takes_one_crop(model)
    model = one_crop(model)
    passes.NameFixPass()(model)  # exporters may leave nodes without a name, and the quantiser needs names
    _plain_batch_norms(model)
    _tidy_types(model)
    match precision:
        case "int8":
            crops = calibration_crops(calibration)
            model = _quantise(_in_opset(model, *_PER_CHANNEL), crops, 1 if one_at_a_time else _BATCH)
            return _half(_in_opset(model, *_HALF_SCALES)) if strongly_typed else model
        case "fp16":
            return _half(model)
        case "bf16":
            model = _in_opset(model, *_BFLOAT_CONV)
            return _bfloat(_half(model), model)
        case _:
            return model


def _plain_batch_norms(model: ir.Model) -> None:
    """Reduce each batch norm to scale and shift: a variance may be too large for 16 bits."""
    for norm in model.graph:
        parameters = affine(norm) if norm.op_type == "BatchNormalization" else None
        if parameters is None:
            continue
        scale, shift = (array.astype(np.float32) for array in parameters)
        for index, array in enumerate((scale, shift, np.zeros_like(scale), np.ones_like(scale)), start=1):
            set_constant(norm, index, array, "plain")
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    passes.RemoveUnusedNodesPass()(model)


def _tidy_types(model: ir.Model) -> None:
    """Leave out what has a type of its own and does nothing."""
    for node in list(model.graph):
        if node.op_type == "Resize" and len(node.inputs) > 1:
            mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
            if mode != "tf_crop_and_resize":
                node.replace_input_with(1, None)  # the region, of which nothing is read
        elif node.op_type == "Cast" and _target(node) == ir.DataType.UINT8:
            # Pixels that a network takes as bytes; TensorRT has bytes at its input alone.
            bypass(node)
            for value in (value for other in model.graph for value in other.outputs):
                value.type = value.type if value.is_graph_output() else None  # what follows changes
    passes.RemoveUnusedNodesPass()(model)


def _half(model: ir.Model) -> ir.Model:
    """Cast the network to float16 with ONNX Runtime's converter."""
    proto = ir.to_proto(model)
    # The converter would take the declared type of a weight for the one that it has after the conversion.
    weights = {tensor.name for tensor in proto.graph.initializer}
    declared = [value for value in proto.graph.value_info if value.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    converted = convert_float_to_float16(
        proto,
        keep_io_types=True,
        op_block_list=_FLOAT32_OPS,
        node_block_list=[node.name for node in _last_step(model)],
    )
    typed: ir.Model = ir.from_proto(converted)
    typed.graph.sort()  # the converter puts its casts at the end
    _drop_detours(typed)
    # Older converters cast a value again for each node that reads it.
    passes.CommonSubexpressionEliminationPass()(typed)
    return typed


def _last_step(model: ir.Model) -> Iterator[ir.Node]:
    """The division by the length, and what only moves its result."""
    node = model.graph.outputs[0].producer()
    while node is not None:
        yield node
        node = node.inputs[0].producer() if node.op_type in _MOVES and node.inputs[0] is not None else None


def _drop_detours(model: ir.Model) -> None:
    """Drop float32 -> float16 -> float32, which the converter leaves between two float32 nodes."""
    for cast in [node for node in model.graph if node.op_type == "Cast"]:
        narrow = cast.inputs[0].producer() if cast.inputs[0] is not None else None
        if narrow is None or narrow.op_type != "Cast" or _target(cast) != ir.DataType.FLOAT:
            continue
        source = narrow.inputs[0]
        if source is None or source.dtype not in (ir.DataType.FLOAT, None):
            continue  # None: the converter does not declare the type of what it adds
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


def _quantise(model: ir.Model, crops: Crops, batch: int) -> ir.Model:
    """Put Q/DQ pairs around the convolutions of a float32 graph, with ranges from calibration crops."""
    convolutions = [str(node.name) for node in model.graph if node.op_type == "Conv"]
    if len(convolutions) < 2:
        raise PrecisionError("int8 is for convolutions after the first, and this network has none; use fp16.")
    if len(crops) < _FEW:
        _log.warning("The ranges of int8 come from %d crops; a few hundred are usual.", len(crops))
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    # Without these marks the quantiser asks on the root logger for a preprocessed model.
    add_infer_metadata(proto)
    add_pre_process_metadata(proto)
    metadata = dict(model.metadata_props)
    with tempfile.TemporaryDirectory() as folder, _silence():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            proto,
            path,
            _Reader(crops, batch),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=convolutions[:1],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            calibration_providers=["CPUExecutionProvider"],
            extra_options=_QUANTISER_OPTIONS,
        )
        quantised = ir.from_proto(onnx.load_model(path))
    quantised.metadata_props.clear()
    quantised.metadata_props.update(metadata)
    return quantised


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the calibrator's progress from standard output, which may be JSON, and its log from the user.

    Its own session pins threads to cores, which fails in a container that has only some of them.
    """
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives the quantiser the crops, a batch at a time."""

    def __init__(self, crops: Crops, batch: int) -> None:
        self._batches = [crops[start : start + batch] for start in range(0, len(crops), batch)]
        self._left: Iterator[Crops] = iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give these batches next."""
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Crops] | None:
        """The next batch; None at the end."""
        batch = next(self._left, None)
        return None if batch is None else {INPUT_NAME: batch}
