"""The four kinds of source that a build can start from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import onnx_ir as ir

from arcface_client.errors import ArcFaceError
from arcface_client.models.files import expanded
from arcface_client.models.manifest import SourceInfo
from arcface_client.models.normalisation import PYTORCH, Normalisation
from arcface_client.runtimes.base import Embed

from ..errors import NotArcFaceError, OptionError
from ..graph.serving import is_serving_graph
from .checkpoint import read_checkpoint
from .insightface_pack import DEFAULT_ROOT, recognition_model
from .iresnet import BLOCKS, iresnet_model
from .model import SourceModel, Stated, identified
from .onnx_file import read_onnx
from .synthetic import synthetic_weights, with_uneven_channels

_log = logging.getLogger(__name__)

Location: TypeAlias = Mapping[str, str | int]
"""What a source needs to be opened again, except the consent to a licence, which is given each time."""

_ARCFACE_TORCH: Final = Stated(PYTORCH, "rgb", "arcface_torch, which trains so")

_PIXELS: Final = {"normalisation": "--normalisation", "color": "--color"}

_UNEVEN: Final = "uneven_channels"
"""A part without a value: its flag says it all."""

_FLAGS: Final[Mapping[str, Mapping[str, str]]] = {
    "onnx": {"path": "--onnx-path", **_PIXELS, "output": "--output"},
    "insightface": {"pack": "--insightface-pack", "root": "--insightface-root"},
    "checkpoint": {"path": "--checkpoint", **_PIXELS},
    "synthetic": {"depth": "--synthetic", "seed": "--seed", _UNEVEN: "--uneven-channels"},
}
"""The flag of ``arcface-builder build`` for each part of a location, by kind."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file: any face network that ONNX Runtime runs.

    Attributes:
        path: The file; it is never changed.
        normalisation: What callers must do with the pixels, where the file leaves it open.
        color: The channel order that callers must give, "rgb" or "bgr", where the file leaves it open.
        output: The output that is the embedding, where several could be.
    """

    path: Path
    normalisation: Normalisation | None = None
    color: str | None = None
    output: str | None = None

    def load(self) -> SourceModel:
        """Read the file; raises NotOnnxError or NotArcFaceError."""
        return _read(self.path, "onnx", Stated(self.normalisation, self.color), self.output)

    def location(self) -> Location:
        """What a manifest holds."""
        stated = Stated(self.normalisation, self.color).location()
        output = {"output": self.output} if self.output is not None else {}
        return {"kind": "onnx", "path": str(self.path.absolute()), **stated, **output}


@dataclass(frozen=True)
class InsightFacePack:
    """The recognition model of an InsightFace pack.

    Attributes:
        pack: Name of the pack, for example "buffalo_l".
        root: InsightFace's folder.
        accept_license: Download the pack if it is missing: the user accepts its terms.
    """

    pack: str
    root: Path = DEFAULT_ROOT
    accept_license: bool = False

    def load(self) -> SourceModel:
        """Find, perhaps fetch, and read the model; raises PackError, NotOnnxError or NotArcFaceError."""
        path = recognition_model(self.pack, root=self.root, accept_license=self.accept_license)
        return _read(path, "insightface", Stated())

    def location(self) -> Location:
        """What a manifest holds."""
        root = {"root": str(expanded(self.root).absolute())} if self.root != DEFAULT_ROOT else {}
        return {"kind": "insightface", "pack": self.pack, **root}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of an arcface_torch IResNet: a state dict, or what training wrote around one.

    Attributes:
        path: ``.pth``, ``.pt`` and the like, or ``.safetensors``, which needs no torch.
        normalisation: What callers must do with the pixels, if not what arcface_torch does.
        color: The channel order that callers must give, if it is "bgr".
    """

    path: Path
    normalisation: Normalisation | None = None
    color: str | None = None

    def load(self) -> SourceModel:
        """Read the weights and build the network; raises CheckpointError or MissingExtraError."""
        depth, weights = read_checkpoint(self.path)
        sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        origin = SourceInfo(kind="checkpoint", name=self.path.name, sha256=sha256, depth=depth)
        stated = _ARCFACE_TORCH
        if self.normalisation or self.color:
            stated = Stated(self.normalisation or PYTORCH, self.color or "rgb")
        return SourceModel(ir.to_proto(iresnet_model(depth, weights)), origin, stated)

    def location(self) -> Location:
        """What a manifest holds."""
        stated = Stated(self.normalisation, self.color).location()
        return {"kind": "checkpoint", "path": str(self.path.absolute()), **stated}


@dataclass(frozen=True)
class Synthetic:
    """An IResNet with seeded random weights: it computes like a real one and cannot tell faces apart.

    Attributes:
        depth: "r18", "r34", "r50", "r100" or "r200".
        seed: Seed of the weights.
        uneven_channels: Give the channels of its feature maps sizes that differ as much as trained ones do,
            which makes int8 as hard; the embeddings hardly change.
    """

    depth: str
    seed: int = 0
    uneven_channels: bool = False

    def load(self) -> SourceModel:
        """Make the network; raises OptionError for an unknown depth or seed."""
        if self.depth not in BLOCKS:
            raise OptionError(f"Depth {self.depth!r} is unknown; expected one of {', '.join(BLOCKS)}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"Seed {self.seed} is out of range; expected 0 to {2**32 - 1}.")
        weights = synthetic_weights(self.depth, self.seed)
        name = f"synthetic {self.depth}, seed {self.seed}"
        if self.uneven_channels:
            weights, name = with_uneven_channels(weights, self.depth, self.seed), f"{name}, uneven channels"
        model = iresnet_model(self.depth, weights)
        model.metadata_props.update(synthetic="true", depth=self.depth, seed=str(self.seed))
        proto = ir.to_proto(model)
        sha256 = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
        return SourceModel(proto, identified("synthetic", name, proto, sha256), _ARCFACE_TORCH)

    def location(self) -> Location:
        """What a manifest holds."""
        uneven = {_UNEVEN: 1} if self.uneven_channels else {}
        return {"kind": "synthetic", "depth": self.depth, "seed": self.seed, **uneven}


Source: TypeAlias = OnnxFile | InsightFacePack | Checkpoint | Synthetic
"""A source: ``load`` gives its model, and ``located`` gives it back from its ``location``."""


def located(location: object) -> Source:
    """The source at a manifest's ``source_location``; a missing pack is not downloaded.

    Raises:
        OptionError: It is not a location.
    """
    match location:
        case {"kind": "onnx", "path": str(path), **rest}:
            output = str(rest["output"]) if "output" in rest else None
            return OnnxFile(Path(path), *_stated(rest), output)
        case {"kind": "insightface", "pack": str(pack), **rest}:
            return InsightFacePack(pack, Path(str(rest.get("root", DEFAULT_ROOT))))
        case {"kind": "checkpoint", "path": str(path), **rest}:
            return Checkpoint(Path(path), *_stated(rest))
        case {"kind": "synthetic", "depth": str(depth), "seed": int(seed), **rest}:
            return Synthetic(depth, seed, bool(rest.get(_UNEVEN)))
    raise OptionError(f"{location!r:.200} is not the location of a source model.")


def build_arguments(source: Source) -> list[str]:
    """The arguments of ``arcface-builder build`` that name a source from any folder."""
    location = source.location()
    # With "=", since a mean below zero looks like a flag.
    return [
        flag if part == _UNEVEN else f"{flag}={location[part]}"
        for part, flag in _FLAGS[str(location["kind"])].items()
        if part in location
    ]


def _stated(location: Mapping[Any, object]) -> tuple[Normalisation | None, str | None]:
    normalisation, color = (location.get(part) for part in _PIXELS)
    return Normalisation.parse(str(normalisation)) if normalisation else None, str(color) if color else None


def source_embedder(source: Source | None, sha256: str) -> tuple[Embed, str] | None:
    """Open the source model that an ONNX model was built from, which has this SHA-256.

    Returns:
        How to embed with it and what that runs, as ``reference_for_plans`` takes it; None, with a warning, if
        the source cannot be read or is another one now.
    """
    if source is None:
        return None
    try:
        model = source.load()
    except (ArcFaceError, OSError) as error:
        _log.warning("The source model is not available (%s); comparing only with the ONNX model", error)
        return None
    if model.origin.sha256 != sha256:
        _log.warning(
            "%s is not what the ONNX model was built from; comparing only with the ONNX model",
            model.origin.name,
        )
        return None
    return model.embed, model.runs


def _read(path: Path, kind: str, stated: Stated, output: str | None = None) -> SourceModel:
    proto, sha256 = read_onnx(path)
    if is_serving_graph(proto):
        raise NotArcFaceError(
            f"{path} is a serving graph that arcface-builder wrote; build from the file it was made from, "
            "which its manifest names."
        )
    return SourceModel(proto, identified(kind, path.name, proto, sha256), stated, output)
