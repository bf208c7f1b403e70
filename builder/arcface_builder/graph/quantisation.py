"""Quantise a serving graph to int8 with Q/DQ pairs, by ONNX Runtime's static quantiser.

Where the pairs stand decides over speed. They stand in front of the convolutions alone, on the input
and on the weights: a convolution between them runs in int8, and what it gives goes to what follows (PRelu,
batch norm, residual Add) in the wider type. Other readers of a convolution's input read the same eight bits:
the residual Add behind a block that has no convolution beside it. The first convolution, which has three
channels to offer, and the Gemm at the end, which is bound by memory, stay wide.

The ranges leave out one value in ten thousand: the few largest of millions would make every step of the other
values coarser.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_infer_metadata, add_pre_process_metadata

from arcface_client.contract import INPUT_NAME, Crops

from .edit import first_convolution

_BATCH: Final = 8  # crops at a time, whose feature maps are in memory at once
_PERCENTILE: Final = 99.99
_FEW: Final = 100

_log = logging.getLogger(__name__)

_OPTIONS: Final = {
    "ActivationSymmetric": True,  # the only kind that TensorRT has
    "WeightSymmetric": True,
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    # TensorRT quantises the weights itself and adds the bias in the accumulator's precision.
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "CalibPercentile": _PERCENTILE,
    "CalibStridedMinMax": 1,  # a histogram after each batch (its name says less): all at once fill the memory
}


def quantise(model: ir.Model, crops: Crops) -> ir.Model:
    """Put Q/DQ pairs around the convolutions, with ranges from calibration crops.

    Args:
        model: A serving graph in float32; it is left as it is.
        crops: uint8 [N, 112, 112, 3], BGR; a few hundred of the kind that will be embedded.
    """
    if len(crops) < _FEW:
        _log.warning("The ranges of int8 come from %d crops; some hundred are usual.", len(crops))
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    # Or the quantiser says, to the root logger, that it would rather have had the model preprocessed.
    add_infer_metadata(proto)
    add_pre_process_metadata(proto)
    metadata = dict(model.metadata_props)
    # The calibrator prints its progress, and standard output may be a program's.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "int8.onnx"
        quantize_static(
            proto,
            path,
            _Reader(crops),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[first_convolution(model).name],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            calibration_providers=["CPUExecutionProvider"],
            extra_options=_OPTIONS,
        )
        quantised = ir.from_proto(onnx.load_model(path))
    quantised.metadata_props.clear()
    quantised.metadata_props.update(metadata)
    return quantised


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the crops to the quantiser, some at a time."""

    def __init__(self, crops: Crops) -> None:
        self._batches = [crops[start : start + _BATCH] for start in range(0, len(crops), _BATCH)]
        self._left: Iterator[Crops] = iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Hand out these batches next."""
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Crops] | None:
        """The next batch; None at the end."""
        batch = next(self._left, None)
        return None if batch is None else {INPUT_NAME: batch}
