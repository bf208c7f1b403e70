"""The reference: a source model through the insightface package, preprocessing and all."""

from __future__ import annotations

from typing import Final

from ..backends.insightface import InsightFaceRuntime, find_source
from ..backends.onnxruntime import ENTRIES
from ..contract import Crops, Embeddings
from ..errors import require
from ..runtimes.base import in_batches
from .embedders import REFERENCE, Embedder

_PURPOSE: Final = "The reference"


class Reference(Embedder):
    """InsightFace's own ``ArcFaceONNX.get_feat`` on the CPU, its features scaled to length one.

    Args:
        source: The source model's ONNX file, as InsightFace takes it, or the name of one of its packs.

    Raises:
        DeploymentError: There is no such file, or InsightFace cannot use it.
        MissingExtraError: The insightface package is not installed.
    """

    kind = REFERENCE

    def __init__(self, source: str) -> None:
        require("insightface.model_zoo.arcface_onnx", extra="insightface", purpose=_PURPOSE)
        require("onnxruntime", extra="onnxruntime", purpose=_PURPOSE)
        from ..runtimes.onnxruntime import open_session

        path = find_source(source)
        self.name, self.where = f"InsightFace {path.name}", str(path)
        self._runtime = _Runtime(path, open_session(path, entries=ENTRIES))

    def _embed(self, crops: Crops) -> Embeddings:
        return in_batches(self._runtime.embed, crops, self._runtime.batch_size)

    @property
    def normalises(self) -> bool:
        """Whether InsightFace normalises the pixels, and not the file itself."""
        return self._runtime.normalisation != (0, 1)

    def embed_with(self, crops: Crops, *, mean: float, std: float) -> Embeddings:
        """Embed with another normalisation than InsightFace's: (pixel - mean) / std."""
        right = self._runtime.normalisation
        self._runtime.normalisation = (mean, std)
        try:
            return self.embed(crops)
        finally:
            self._runtime.normalisation = right

    def close(self) -> None:
        """Free the model."""
        self._runtime.close()


class _Runtime(InsightFaceRuntime):
    """One whose normalisation can be changed."""

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and divisor of the pixels."""
        return self._model.input_mean, self._model.input_std

    @normalisation.setter
    def normalisation(self, values: tuple[float, float]) -> None:
        self._model.input_mean, self._model.input_std = values
