"""The source model with reference preprocessing: what a serving graph is compared with."""

from __future__ import annotations

import logging
from typing import Final, Literal

import numpy as np
import onnx
import onnxruntime

from arcface_client.contract import CROP_SHAPE, Crops, Embeddings

from .graph import RUN_ERRORS, session
from .source_model import SourceModel

_log = logging.getLogger(__name__)

Reference = Literal["source file", "mended copy"]

_DTYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class ReferenceEmbedder:
    """Embeds as a careful user of the source file would: InsightFace's preprocessing, crop by crop.

    One crop at a time is the one batch size that every file supports. The file itself is run where that
    is possible. A file with float16 weights is compared by its mended copy, which computes with the same
    weights in float32, as the serving graph does; so is one that ONNX Runtime cannot run.

    Args:
        source: The source model.
    """

    def __init__(self, source: SourceModel) -> None:
        self._source = source
        self._session = None if _has_halves(source.proto) else _session_of(source.proto, source)
        self.runs: Reference = "source file" if self._session else "mended copy"
        if self._session is None:
            self._session = session(source.mended)

    def embed(self, crops: Crops) -> Embeddings:
        """Embed BGR crops: uint8 [N, 112, 112, 3] in, float32 [N, 512] unit rows out."""
        return _embed(self._session, self._source, crops)


def _has_halves(proto: onnx.ModelProto) -> bool:
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in proto.graph.initializer)


def _session_of(proto: onnx.ModelProto, source: SourceModel) -> onnxruntime.InferenceSession | None:
    """Load the source file; None if it does not load, or fails on a crop."""
    try:
        loaded = session(proto.SerializeToString())
        _embed(loaded, source, np.zeros((1, *CROP_SHAPE), np.uint8))
    except RUN_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        _log.info("ONNX Runtime cannot run the source file itself (%s); its mended copy stands in", reason)
        return None
    return loaded


def _embed(loaded: onnxruntime.InferenceSession, source: SourceModel, crops: Crops) -> Embeddings:
    pixels = source.caller.apply(crops)
    if source.prefix.input_channels == "BGR":
        pixels = pixels[:, ::-1]
    if source.prefix.channels_last:
        pixels = pixels.transpose(0, 2, 3, 1)
    (image,) = loaded.get_inputs()
    pixels = np.ascontiguousarray(pixels.astype(_DTYPES[image.type]))
    rows = [loaded.run(None, {image.name: pixels[i : i + 1]})[0].reshape(-1) for i in range(len(pixels))]
    raw = np.stack(rows).astype(np.float64)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return np.asarray(unit, np.float32)
