"""The reference: InsightFace's own code on its own files, in this process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from ..contract import CROP_SHAPE, CROP_SIZE, Crops, Embeddings
from ..errors import ContractError, DeploymentError, ModelNotFoundError, require
from ..failover.replica import Origin
from ..models.embedding_space import EmbeddingSpace
from ..models.files import expanded, file_sha256
from ..models.repository import LocalModels
from ..observability.diagnostics import Diagnostics
from .local import BATCH_SIZE, LocalModel, provider_options

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger(__name__)

PACKS: Final = Path("~/.insightface/models")

_PURPOSE: Final = "The reference"


class InsightFaceRuntime:
    """InsightFace's ``ArcFaceONNX`` as a runtime: its preprocessing, its network, and unit length.

    Args:
        path: A recognition model as InsightFace's packs hold it.
        session: The file, loaded with ONNX Runtime.

    Raises:
        ContractError: It is not a recognition model.
    """

    def __init__(self, path: Path, session: onnxruntime.InferenceSession) -> None:
        arcface = require("insightface.model_zoo.arcface_onnx", extra="insightface", purpose=_PURPOSE)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(outputs) != 1 or not _takes_crops([tensor.shape for tensor in inputs]):
            raise ContractError(
                f"{path} is not a recognition model of InsightFace: it has inputs "
                f"{[tensor.shape for tensor in inputs]}; expected [N, 3, {CROP_SIZE}, {CROP_SIZE}]. Name "
                "another file as embedding.source."
            )
        self.batch_size = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else BATCH_SIZE
        """The largest batch that the file takes."""

        self._model = arcface.ArcFaceONNX(str(path), session=session)

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, D] unit rows out.

        Raises:
            DeploymentError: The model fails on it.
        """
        from ..runtimes.onnxruntime import RUN_ERRORS

        try:
            features = np.asarray(self._model.get_feat(list(crops)), np.float32).reshape(len(crops), -1)
        except RUN_ERRORS as error:
            raise DeploymentError(f"InsightFace failed on a batch of {len(crops)}: {error}") from error
        return features / np.linalg.norm(features, axis=1, keepdims=True)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the session."""
        del self._model


def insightface_origin(models: LocalModels, name: str, source: str, provider: str, gpu: int) -> Origin:
    """The reference on a provider; ``name`` is the family of models whose reference it may be."""

    def load(*_: object) -> LocalModel:
        require("insightface.model_zoo.arcface_onnx", extra="insightface", purpose=_PURPOSE)
        require("onnxruntime", extra="onnxruntime", purpose=_PURPOSE)
        from ..runtimes.onnxruntime import open_on

        path = find_source(source)

        def try_out(session: onnxruntime.InferenceSession) -> None:
            InsightFaceRuntime(path, session).embed(np.zeros((1, *CROP_SHAPE), np.uint8))

        options = provider_options(provider, gpu)
        session = open_on(provider, path, options=options, try_out=try_out)
        runtime = InsightFaceRuntime(path, session)
        sha256 = file_sha256(path)
        reference = models.golden_of_source(name, sha256)
        known = Diagnostics(
            backend="insightface",
            model=path.stem,
            engine_path=str(path),
            precision="fp32",
            provider=provider,
            batch_size=runtime.batch_size,
        )
        space = EmbeddingSpace(source_sha256=sha256, precision_class="float")
        golden = None if reference is None else reference.embeddings
        return LocalModel(runtime, known, runtime.batch_size, space, golden)

    return Origin(f"{source} through InsightFace on {provider}", load)


def find_source(source: str) -> Path:
    """The file of a source: a path, or the recognition model of a pack in InsightFace's folder.

    Raises:
        ModelNotFoundError: It is not there.
    """
    path = expanded(Path(source))
    if path.suffix == ".onnx" or path.is_file():
        if not path.is_file():
            raise ModelNotFoundError(
                f"There is no file {path}; give an ONNX file or a pack, for example buffalo_l."
            )
        return path
    folder = expanded(PACKS) / source
    # antelopev2.zip holds a folder of its own name, so its files lie one level deeper.
    found = [file for file in sorted(folder.rglob("*.onnx")) if _is_recognition(file)]
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        there = (
            f"{len(found)} recognition models ({names}) are in" if found else f"There is no pack {source} at"
        )
        raise ModelNotFoundError(
            f"{there} {folder}. Set embedding.source to an ONNX file that you may use, or unpack one of "
            "InsightFace's packs there (for non-commercial research only); other backends need neither."
        )
    return found[0]


def _is_recognition(path: Path) -> bool:
    onnx: Any = require("onnx", extra="insightface", purpose=_PURPOSE)
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        _log.warning("%s is not an ONNX file; it is ignored", path)
        return False
    weights = {tensor.name for tensor in graph.initializer}
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in weights
    ]
    return len(graph.output) == 1 and _takes_crops(shapes)


def _takes_crops(shapes: list[list[Any]]) -> bool:
    return len(shapes) == 1 and list(shapes[0][1:]) == [3, CROP_SIZE, CROP_SIZE]
