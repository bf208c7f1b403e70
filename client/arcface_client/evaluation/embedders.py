"""What can be compared: a model on a server, an ONNX file in this process, InsightFace itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from ..backends.onnxruntime import ENTRIES
from ..contract import EMBEDDING_DIM, Crops, Embeddings
from ..errors import DeploymentError, require

if TYPE_CHECKING:
    from ..triton.client import EmbeddingClient

E = TypeVar("E", bound="Embedder")

SERVED: Final = "served"
IN_PROCESS: Final = "in process"
REFERENCE: Final = "reference"


class Embedder(ABC):
    """Something that embeds; all are used alike.

    Attributes:
        name: What to call it.
        kind: "served", "in process" or "reference".
        where: The server's address, or the file.
    """

    name: str
    kind: str
    where: str

    @abstractmethod
    def _embed(self, crops: Crops) -> Embeddings: ...

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, 512] out.

        Raises:
            ArcFaceError: It could not, or gave something that is no embedding.
        """
        embeddings = self._embed(crops)
        if embeddings.shape != (len(crops), EMBEDDING_DIM):
            raise DeploymentError(
                f"{self.name} answered with shape {embeddings.shape}; expected {(len(crops), EMBEDDING_DIM)}."
            )
        if not np.isfinite(embeddings).all() or not embeddings.any(axis=1).all():
            raise DeploymentError(f"{self.name} answered with embeddings that are zero, NaN or infinite.")
        return embeddings

    def __enter__(self: E) -> E:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class OnServer(Embedder):
    """A model on a Triton server.

    Args:
        client: Client of the model; it is closed with the embedder.
        name: The model and its version, as "arcface_r100_trt:3".
        url: The server's address.
    """

    kind = SERVED

    def __init__(self, client: EmbeddingClient, name: str, url: str) -> None:
        self.name, self.where = name, url
        self._client = client

    def _embed(self, crops: Crops) -> Embeddings:
        return self._client.encode(crops)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class InProcess(Embedder):
    """A serving graph, run by ONNX Runtime in this process.

    Args:
        path: ONNX file with the contract's tensors.

    Raises:
        DeploymentError: It is missing, or ONNX Runtime cannot load it.
        ContractError: It has other tensors.
        MissingExtraError: ONNX Runtime is not installed.
    """

    kind = IN_PROCESS

    def __init__(self, path: Path) -> None:
        require("onnxruntime", extra="onnxruntime", purpose="Running an ONNX file in this process")
        from ..runtimes.onnxruntime import OnnxRuntime

        self.name = self.where = str(path)
        self._runtime = OnnxRuntime(path, entries=ENTRIES)

    def _embed(self, crops: Crops) -> Embeddings:
        return self._runtime.embed(crops)

    def close(self) -> None:
        """Free the model."""
        self._runtime.close()
