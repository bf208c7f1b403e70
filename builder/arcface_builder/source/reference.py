"""Reference embeddings: the source model with the preprocessing that its users do themselves."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np

from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.errors import ArcFaceError
from arcface_client.runtimes.base import Embed
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..errors import NotArcFaceError
from ..graph.edit import first_line, numpy_dtype, session
from .load import Source
from .model import SourceModel

_log = logging.getLogger(__name__)

Reference = Literal["source file", "fixed copy"]
"""What computes the reference embeddings; manifests hold these words."""


class ReferenceEmbedder:
    """Embeds as a careful user of the source file would: InsightFace's preprocessing, crop by crop.

    One crop at a time is the one batch size that every file supports. The file itself is run. The copy with
    its issues fixed stands in only for an issue that explains why: float16 arithmetic, since the serving
    graph computes with the same weights in float32, or an issue that keeps runtimes from running the file.
    The copy cannot prove its own fixes, so that is a warning.

    Args:
        source: The source model.

    Raises:
        NotArcFaceError: ONNX Runtime cannot run the file, and no issue explains it.
    """

    def __init__(self, source: SourceModel) -> None:
        self._source = source
        self.runs: Reference = "source file"
        issues = {issue.when_run: issue.problem for issue in source.issues}
        if "rounds" in issues:
            self._run_fixed_copy(issues["rounds"])
            return
        try:
            self._session = session(source.proto.SerializeToString())
            self.embed(np.zeros((1, *CROP_SHAPE), np.uint8))
        except RUN_ERRORS as error:
            if "may fail" not in issues:
                raise NotArcFaceError(
                    f"ONNX Runtime cannot run the source file on one crop ({first_line(error)}), so there is "
                    "nothing to compare a build with; export it with a batch of one or a free one."
                ) from error
            self._run_fixed_copy(issues["may fail"])

    def embed(self, crops: Crops) -> Embeddings:
        """Embed BGR crops: uint8 [N, 112, 112, 3] in, float32 [N, 512] unit rows out."""
        source, image = self._source, self._source.fixed.graph.inputs[0]
        pixels = source.caller.apply(crops)
        if source.preprocessing.input_channels == "BGR":
            pixels = pixels[:, ::-1]
        if source.preprocessing.channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        pixels = np.ascontiguousarray(pixels.astype(numpy_dtype(image)))
        rows = [self._session.run(None, {image.name: row[np.newaxis]})[0].reshape(-1) for row in pixels]
        raw = np.stack(rows).astype(np.float64)
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return np.asarray(unit, np.float32)

    def _run_fixed_copy(self, issue: str) -> None:
        _log.warning("The source file itself was not run (%s); its fixed copy is the reference", issue)
        self.runs = "fixed copy"
        self._session = session(self._source.fixed)


def source_embedder(source: Source | None, sha256: str) -> tuple[Embed, str] | None:
    """Open the source model of an ONNX model, if it is still available.

    Args:
        source: Where it was at the time of the build.
        sha256: SHA-256 of the source that the ONNX model was built from.

    Returns:
        How to embed with it and what that runs, as ``reference_for_plans`` takes it; None, with a warning, if
        the source cannot be read or is another one now.
    """
    if source is None:
        return None
    try:
        model = source.load()
    except (ArcFaceError, OSError) as error:
        _log.warning("The source model is not available (%s); comparing with the ONNX model alone", error)
        return None
    if model.origin.sha256 != sha256:
        _log.warning(
            "%s is not what the ONNX model was built from; comparing with the ONNX model alone",
            model.origin.name,
        )
        return None
    reference = ReferenceEmbedder(model)
    return reference.embed, reference.runs
