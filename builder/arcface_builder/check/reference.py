"""The source model with reference preprocessing: what a serving graph is compared with."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np

from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..errors import NotArcFaceError
from ..graph.edit import first_line, numpy_dtype, session
from ..source.source_model import SourceModel

_log = logging.getLogger(__name__)

Reference = Literal["source file", "mended copy"]


class ReferenceEmbedder:
    """Embeds as a careful user of the source file would: InsightFace's preprocessing, crop by crop.

    One crop at a time is the one batch size that every file supports. The file itself is run. Its mended
    copy stands in only for a fault that was found and says why: float16 arithmetic, since the serving
    graph computes with the same weights in float32, or a fault that keeps runtimes from running the file.
    A mended copy cannot prove its own repairs, so that is a warning.

    Args:
        source: The source model.

    Raises:
        NotArcFaceError: ONNX Runtime cannot run the file, and no fault that was mended explains it.
    """

    def __init__(self, source: SourceModel) -> None:
        self._source = source
        self.runs: Reference = "source file"
        faults = {finding.when_run: finding.problem for finding in source.findings}
        if "rounds" in faults:
            self._stand_in(faults["rounds"])
            return
        try:
            self._session = session(source.proto.SerializeToString())
            self.embed(np.zeros((1, *CROP_SHAPE), np.uint8))
        except RUN_ERRORS as error:
            if "may fail" not in faults:
                raise NotArcFaceError(
                    f"ONNX Runtime cannot run the source file on one crop ({first_line(error)}), so there is "
                    "nothing to compare a build with; export it with a batch of one or a free one."
                ) from error
            self._stand_in(faults["may fail"])

    def embed(self, crops: Crops) -> Embeddings:
        """Embed BGR crops: uint8 [N, 112, 112, 3] in, float32 [N, 512] unit rows out."""
        source, image = self._source, self._source.mended.graph.inputs[0]
        pixels = source.caller.apply(crops)
        if source.prefix.input_channels == "BGR":
            pixels = pixels[:, ::-1]
        if source.prefix.channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        pixels = np.ascontiguousarray(pixels.astype(numpy_dtype(image)))
        rows = [self._session.run(None, {image.name: row[np.newaxis]})[0].reshape(-1) for row in pixels]
        raw = np.stack(rows).astype(np.float64)
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return np.asarray(unit, np.float32)

    def _stand_in(self, problem: str) -> None:
        _log.warning("The source file itself was not run (%s): its mended copy stands in", problem)
        self.runs = "mended copy"
        self._session = session(self._source.mended)
