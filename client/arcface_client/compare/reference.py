"""The reference: a source model through the insightface package, preprocessing and all."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from ..commandline import require
from ..contract import Crops, Embeddings
from ..errors import DeploymentError
from .embedders import REFERENCE, Embedder

_CPU: Final = -1


class Reference(Embedder):
    """InsightFace's own ``ArcFaceONNX.get_feat`` on the CPU, its features scaled to length one.

    Args:
        path: The source model's ONNX file, as InsightFace takes it: float32 RGB in, raw features out.

    Raises:
        DeploymentError: There is no such file, or InsightFace cannot use it.
        MissingExtraError: The insightface package is not installed.
    """

    kind = REFERENCE

    def __init__(self, path: Path) -> None:
        arcface = require("insightface.model_zoo.arcface_onnx", extra="insightface", purpose="The reference")
        from google.protobuf.message import DecodeError

        from ..runtimes.onnxruntime import RUN_ERRORS

        self._errors = RUN_ERRORS
        self.name, self.where = f"InsightFace {path.name}", str(path)
        if not path.is_file():
            raise DeploymentError(
                f"There is no file {path}; give the ONNX file that the models were built from."
            )
        try:
            self._recogniser = arcface.ArcFaceONNX(str(path))
            self._recogniser.prepare(ctx_id=_CPU)
            batch, *shape = self._recogniser.session.get_inputs()[0].shape
        except (AssertionError, DecodeError, IndexError, *RUN_ERRORS) as error:
            raise DeploymentError(
                f"InsightFace cannot load {path}: {error or 'more than one output'}"
            ) from error
        if shape != [3, 112, 112]:
            raise DeploymentError(
                f"{path} takes {shape}; expected the source model, which takes [3, 112, 112] of floats. "
                "A model of a model repository is named without --reference."
            )
        self._batch_size = batch if isinstance(batch, int) and batch > 0 else None

    def _embed(self, crops: Crops) -> Embeddings:
        size = self._batch_size or len(crops)
        try:
            runs = [
                self._recogniser.get_feat(list(crops[start : start + size]))
                for start in range(0, len(crops), size)
            ]
        except self._errors as error:
            raise DeploymentError(f"InsightFace failed on {self.where}: {error}") from error
        features = np.concatenate(runs).astype(np.float64)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        return np.asarray(unit, np.float32)

    @property
    def normalises(self) -> bool:
        """Whether InsightFace normalises the pixels, and not the file itself."""
        return bool(self._recogniser.input_std != 1)

    def embed_with(self, crops: Crops, *, mean: float, std: float) -> Embeddings:
        """Embed with another normalisation than InsightFace's: (pixel - mean) / std."""
        right = self._recogniser.input_mean, self._recogniser.input_std
        self._recogniser.input_mean, self._recogniser.input_std = mean, std
        try:
            return self.embed(crops)
        finally:
            self._recogniser.input_mean, self._recogniser.input_std = right

    def close(self) -> None:
        """Free the model."""
        del self._recogniser
