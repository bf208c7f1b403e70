"""The reference: InsightFace's own code on its own files, in this process."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from ..contract import CROP_SHAPE, CROP_SIZE, INPUT_NAME, Crops, Embeddings
from ..errors import ContractError, DeploymentError, ModelNotFoundError, require
from ..failover.replica import Origin
from ..models.embedding_space import EmbeddingSpace
from ..models.files import expanded
from ..models.golden import GoldenReference, golden_crops, largest_drift
from ..models.normalisation import PYTORCH, RAW, Normalisation, Pixels
from ..models.repository import LocalModels
from ..observability.diagnostics import Diagnostics
from ..runtimes.base import in_batches, provider_options
from .local import BATCH_SIZE, LocalModel

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger(__name__)

PACKS: Final = Path("~/.insightface/models")

KNOWN_FILES: Final[Mapping[str, str]] = {
    "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43": "buffalo_l/w600k_r50.onnx",
    "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf": "antelopev2/glintr100.onnx",
    "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f": "buffalo_s/w600k_mbf.onnx",
}
"""InsightFace's recognition models by SHA-256; their callers normalise pixels to -1 to 1."""

_PURPOSE: Final = "The reference"
_PLANES: Final = (3, CROP_SIZE, CROP_SIZE)
_CHECKPOINTS: Final = (".ckpt", ".pt", ".pth", ".safetensors")
_SAME: Final = 1e-5
"""Drift that rounding explains."""

_DTYPES: Final[Mapping[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


class SourceRuntime:
    """A source network as its own users run it, and unit length.

    InsightFace's own ``get_feat`` prepares the pixels and runs the network, unless the file is none of its
    kind (channels last, several outputs) or takes other pixels.

    Args:
        path: An ONNX file of a face network.
        session: The file, loaded with ONNX Runtime.
        pixels: What the network takes; None leaves it to InsightFace, whose default is RGB, -1 to 1.
        output: The output that is the embedding; None finds it.

    Raises:
        ContractError: It is not a face network.
        DeploymentError: It cannot be run.
    """

    def __init__(
        self,
        path: Path,
        session: onnxruntime.InferenceSession,
        pixels: Pixels | None = None,
        output: str | None = None,
    ) -> None:
        self._path, self._session = path, session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shapes = [tensor.shape for tensor in inputs]
        self._first, self._last = _takes(shapes, _PLANES), _takes(shapes, CROP_SHAPE)
        dtype = _DTYPES.get(inputs[0].type)
        if inputs[0].name == INPUT_NAME and dtype is np.uint8:
            raise ContractError(
                f"{path} is a serving graph; as embedding.source or --reference name the file that it was "
                "built from."
            )
        if dtype is None or not (self._first or self._last):
            raise ContractError(
                f"{path} is not a face network: it has inputs {shapes}; expected one image, "
                f"[N, 3, {CROP_SIZE}, {CROP_SIZE}] or [N, {CROP_SIZE}, {CROP_SIZE}, 3]. Name another file."
            )
        self._image, self._dtype, fixed = inputs[0].name, dtype, shapes[0][0]
        self._fixed = fixed if isinstance(fixed, int) and fixed > 0 else None
        self._insightface: Any = None
        self.pixels = pixels or Pixels("RGB", RAW if dtype is np.uint8 else PYTORCH)
        ours = self._first and len(outputs) == 1 and dtype is np.float32
        if ours and not _external_weights(path):  # InsightFace's loader refuses links to these
            arcface = require("insightface.model_zoo.arcface_onnx", extra="insightface", purpose=_PURPOSE)
            model = arcface.ArcFaceONNX(str(path), session=session)
            own = Pixels("RGB", Normalisation.uniform(model.input_mean, model.input_std))
            if pixels in (None, own):
                self._insightface, self.pixels = model, own
        self._output = output or self._find_output()
        self.batch_size = self._fixed or (BATCH_SIZE if self._takes_batches() else 1)
        """The largest batch that the file takes."""

    @property
    def by_insightface(self) -> bool:
        """Whether InsightFace's own code runs it."""
        return self._insightface is not None

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, D] unit rows out.

        Raises:
            DeploymentError: The model fails on it.
        """
        return self._embed(crops, None if self.by_insightface else self.pixels)

    def embed_as(self, crops: Crops, pixels: Pixels) -> Embeddings:
        """Embed crops of any number with other pixels than the network is said to take."""
        return in_batches(lambda batch: self._embed(batch, pixels), crops, self.batch_size)

    def close(self) -> None:
        """Free the session."""
        del self._session, self._insightface

    def _embed(self, crops: Crops, pixels: Pixels | None) -> Embeddings:
        from ..runtimes.onnxruntime import RUN_ERRORS

        # A file with a fixed batch takes no smaller one.
        batch = crops if self._fixed is None else np.resize(crops, (self._fixed, *CROP_SHAPE))
        try:
            if pixels is None:
                features = self._insightface.get_feat(list(batch))
            else:
                features = self._run([self._output], batch, pixels)[0]
        except RUN_ERRORS as error:
            raise DeploymentError(f"The reference failed on a batch of {len(batch)}: {error}") from error
        rows = np.asarray(features, np.float32).reshape(len(batch), -1)[: len(crops)]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]

    def _run(self, outputs: list[str], crops: Crops, pixels: Pixels) -> list[npt.NDArray[Any]]:
        planes = pixels.planes(crops)
        image = planes if self._first else planes.transpose(0, 2, 3, 1)
        return list(self._session.run(outputs, {self._image: image.astype(self._dtype)}))

    def _find_output(self) -> str:
        """The output that is a vector for each crop; the longest of several, such as embedding and norm."""
        from ..runtimes.onnxruntime import RUN_ERRORS

        names: list[str] = [tensor.name for tensor in self._session.get_outputs()]
        crops = golden_crops()[:1].repeat(self._fixed or 1, axis=0)
        try:
            values = dict(zip(names, self._run(names, crops, self.pixels), strict=True))
        except RUN_ERRORS as error:
            raise DeploymentError(f"ONNX Runtime cannot run {self._path}: {error}") from error
        vectors = {
            name: value.size
            for name, value in values.items()
            if value.size == len(crops) * max(value.shape[1:] or value.shape)
        }
        if not vectors:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ContractError(f"{self._path} gives no embedding; its outputs: {shapes}.")
        return max(vectors, key=vectors.__getitem__)

    def _takes_batches(self) -> bool:
        """Whether a crop has the same embedding in a batch: a free dimension in the file proves nothing."""
        crops = golden_crops()[:2]
        alone = in_batches(self.embed, crops, 1)
        try:
            return largest_drift(self.embed(crops), alone) < _SAME
        except (DeploymentError, ValueError):  # fewer rows than crops
            return False


def insightface_origin(models: LocalModels, source: str, provider: str, gpu: int) -> Origin:
    """The reference on a provider; a manifest of what was built from it says which pixels it takes."""

    def load(*_: object) -> LocalModel:
        require("insightface.model_zoo.arcface_onnx", extra="insightface", purpose=_PURPOSE)
        require("onnxruntime", extra="onnxruntime", purpose=_PURPOSE)
        from ..runtimes.onnxruntime import open_on

        path = find_source(source)
        sha256 = source_sha256(path)
        manifest = models.built_from(sha256)
        pixels, output = (manifest.preprocessing.caller, manifest.output) if manifest else (None, None)

        def try_out(session: onnxruntime.InferenceSession) -> None:
            SourceRuntime(path, session, pixels, output).embed(golden_crops()[:1])

        options = provider_options(provider, gpu)
        session = open_on(provider, path, options=options, try_out=try_out, as_it_is=True)
        runtime = SourceRuntime(path, session, pixels, output)
        if pixels is None and sha256 not in KNOWN_FILES and expanded(PACKS) not in path.parents:
            _log.warning(
                "%s is given %s, which is an assumption: %s has no model that was built from it. Build "
                "one, and state what the network takes (--color, --normalisation)",
                path,
                runtime.pixels,
                models.root,
            )
        known = Diagnostics(
            backend="insightface",
            model=path.stem,
            engine_path=str(path),
            precision="fp32",
            provider=provider,
            batch_size=runtime.batch_size,
        )
        space = EmbeddingSpace(source_sha256=sha256, precision_class="float")
        golden = manifest.golden.known if manifest else None
        return LocalModel(runtime, known, space, None if golden is None else GoldenReference(golden, space))

    return Origin(f"{source} through InsightFace on {provider}", load)


def find_source(source: str) -> Path:
    """The file of a source: a path, or the recognition model of a pack in InsightFace's folder.

    Raises:
        ModelNotFoundError: It is not there.
    """
    path, folder = expanded(Path(source)), expanded(PACKS) / source
    if path.is_file():
        if path.suffix in _CHECKPOINTS:
            raise ModelNotFoundError(
                f"{path} is a checkpoint, weights without a network, and the reference runs ONNX files: "
                "build it with `arcface-builder build`, and use the model that was built from it."
            )
        return path
    found = recognition_models(folder)
    is_path = path.suffix in (".onnx", *_CHECKPOINTS) or len(path.parts) > 1 or path.is_dir()
    if is_path and not found:
        problem = f"{path} is a folder" if path.is_dir() else f"There is no file {path}"
        raise ModelNotFoundError(f"{problem}; give an ONNX file or a pack, for example buffalo_l.")
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        there = (
            f"{len(found)} recognition models ({names}) are in" if found else f"There is no pack {source} at"
        )
        raise ModelNotFoundError(
            f"{there} {folder}. Give an ONNX file that you may use (embedding.source, --source or "
            "--reference), or unpack one of InsightFace's packs there (for non-commercial research only); "
            "other backends need neither."
        )
    return found[0]


def source_sha256(path: Path) -> str:
    """SHA-256 of a source as its manifest has it: of the file, and of the weights that it keeps in others.

    Raises:
        DeploymentError: A file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        digest.update(path.read_bytes())
        for file, offset, length in _external_weights(path):
            with file.open("rb") as data:
                data.seek(offset)
                digest.update(data.read(length))
    except OSError as error:
        raise DeploymentError(f"Cannot read {error.filename or path}: {error.strerror}.") from error
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise DeploymentError(f"{path} does not say where it keeps its weights: {error}.") from error
    return digest.hexdigest()


def _external_weights(path: Path) -> list[tuple[Path, int, int]]:
    """The file, place and length of each weight that an ONNX file keeps in another file."""
    onnx: Any = require("onnx", extra="insightface", purpose=_PURPOSE)
    try:
        weights = onnx.load(path, load_external_data=False).graph.initializer
    except DecodeError:
        return []
    places = [{entry.key: entry.value for entry in weight.external_data} for weight in weights]
    return [
        (path.parent / place["location"], int(place.get("offset", 0)), int(place.get("length", -1)))
        for place in places
        if "location" in place
    ]


def recognition_models(folder: Path) -> list[Path]:
    """The recognition models of a pack, which are found by what they take and give."""
    # antelopev2.zip holds a folder of its own name, so its files lie one level deeper.
    return [file for file in sorted(folder.rglob("*.onnx")) if _is_recognition(file)]


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
    return len(graph.output) == 1 and _takes(shapes, _PLANES)


def _takes(shapes: list[list[Any]], image: tuple[int, ...]) -> bool:
    """Whether a model has one input, of images of this shape; a dimension with a name is free."""
    if len(shapes) != 1 or len(shapes[0]) != 1 + len(image):
        return False
    return all(
        dim == size or not isinstance(dim, int) for dim, size in zip(shapes[0][1:], image, strict=True)
    )
