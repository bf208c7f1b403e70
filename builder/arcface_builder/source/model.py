"""A source model: the ONNX graph that a build starts from, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import onnx_ir as ir

from arcface_client.backends.insightface import KNOWN_FILES
from arcface_client.contract import Crops, Embeddings
from arcface_client.models.manifest import SourceInfo
from arcface_client.models.normalisation import PYTORCH, RAW, Normalisation
from arcface_client.runtimes.base import Embed, in_batches
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..check.accuracy import TOLERANCE
from ..check.crops import face_like, noise
from ..errors import NotArcFaceError
from ..graph.edit import embedder, first_line
from ..graph.serving import Preparation, crop_by_crop, optimise, takes_one_crop, to_file, wrap
from ..graph.signature import unit_rows
from .fixes import OLDEST_OPSET, Issue, free_batch, raised, simplify
from .network import Network, Reference, open_network
from .preprocessing import InputPreprocessing, contradicts, expected_of_caller, read_preprocessing

SHOWN: Final = "what the graph computes"
ASSUMED: Final = "an assumption, since the file does not show it"
_KNOWN: Final = "the file's SHA-256"
_SEED: Final = 2  # of the crops that choose a serving graph

PACK_TERMS: Final = "InsightFace's packs are for non-commercial research only"


def identified(kind: str, name: str, proto: onnx.ModelProto, sha256: str) -> SourceInfo:
    """Identify an ONNX file by its SHA-256 and by the labels that a synthetic model has."""
    known = KNOWN_FILES.get(sha256)
    labels = {entry.key: entry.value for entry in proto.metadata_props}
    synthetic = labels.get("synthetic") == "true"
    seed = labels.get("seed", "") if synthetic else ""
    return SourceInfo(
        kind=kind,
        name=name,
        sha256=sha256,
        known_file=known,
        terms=PACK_TERMS if known or kind == "insightface" else None,
        synthetic=synthetic,
        depth=labels.get("depth") if synthetic else None,
        seed=int(seed) if seed.isdecimal() else None,
    )


def labels_of(origin: SourceInfo) -> dict[str, str]:
    """The labels that ``identified`` reads, for a file's metadata."""
    labels = {"synthetic": str(origin.synthetic).lower(), "depth": origin.depth, "seed": origin.seed}
    return {key: str(value) for key, value in labels.items() if value is not None}


@dataclass(frozen=True)
class Stated:
    """What need not be inferred of a source's input.

    Attributes:
        normalisation: What callers do with the pixels.
        color: The channel order that they give, "rgb" or "bgr".
        by: Who says so.
    """

    normalisation: Normalisation | None = None
    color: str | None = None
    by: str = "the command line"

    def location(self) -> dict[str, str]:
        """What a manifest holds."""
        normalisation = {"normalisation": self.normalisation.to_argument()} if self.normalisation else {}
        return normalisation | ({"color": self.color} if self.color else {})


@dataclass(frozen=True)
class Served:
    """The serving graph of a source.

    Attributes:
        model: The graph, without what a build writes into its metadata.
        issues: What was changed, or could not be.
    """

    model: ir.Model
    issues: tuple[Issue, ...]


@dataclass(frozen=True)
class SourceModel:
    """A source model, and what is known of it.

    What is derived raises NotArcFaceError if ONNX Runtime cannot run it, or if it is not a face network.

    Attributes:
        proto: The model as it is in its file.
        origin: Where it comes from.
        stated: What need not be inferred.
        output: The output that is the embedding; None finds it by its shape.
    """

    proto: onnx.ModelProto
    origin: SourceInfo
    stated: Stated = Stated()
    output: str | None = None

    @cached_property
    def network(self) -> Network:
        """The network as ONNX Runtime runs it."""
        return open_network(self.proto, self.output)

    @property
    def runs(self) -> Reference:
        """What computes the embeddings: the source file, or its copy with issues fixed."""
        return self.network.runs

    @property
    def issues(self) -> tuple[Issue, ...]:
        """The issues of the file, and what the build does about each."""
        return (*self.network.issues, *self.served.issues)

    @cached_property
    def preprocessing(self) -> InputPreprocessing | None:
        """What the graph itself does to the image; None if that is not a normalisation by channel."""
        return read_preprocessing(self.network.model, self.network.image)

    @cached_property
    def _caller(self) -> tuple[Normalisation, str]:
        if self.stated.normalisation:
            return self.stated.normalisation, self.stated.by
        if self.origin.known_file:
            return PYTORCH, _KNOWN
        graph = self.preprocessing
        if self.network.image.dtype == ir.DataType.UINT8:
            return RAW, SHOWN
        if graph is None or graph.normalisation == RAW:
            return PYTORCH, self._unshown
        expected, sure = expected_of_caller(graph.normalisation)
        return expected, SHOWN if sure else self._unshown

    @property
    def caller(self) -> Normalisation:
        """What a caller of the source model must do with the pixels."""
        return self._caller[0]

    @property
    def caller_from(self) -> str:
        """How ``caller`` is known."""
        return self._caller[1]

    @property
    def channels(self) -> str:
        """Channel order that a caller of the source model must give, for example "RGB"."""
        if self.stated.color:
            return self.stated.color.upper()
        return self.preprocessing.input_channels if self.preprocessing else "RGB"

    @property
    def channels_from(self) -> str:
        """How ``channels`` is known."""
        if self.stated.color:
            return self.stated.by
        if self.origin.known_file:
            return _KNOWN
        return SHOWN if self.channels != "RGB" else self._unshown

    @property
    def assumed(self) -> tuple[Literal["channels", "normalisation"], ...]:
        """What of the preprocessing neither the file shows nor somebody states."""
        parts: dict[Literal["channels", "normalisation"], str] = {
            "channels": self.channels_from,
            "normalisation": self.caller_from,
        }
        return tuple(part for part, known_from in parts.items() if known_from == ASSUMED)

    @property
    def warnings(self) -> list[Issue]:
        """What a user should look at: assumptions, contradictions, and what costs speed."""
        warnings, graph = [], self.preprocessing
        if self.assumed:
            values = {"channels": self.channels, "normalisation": str(self.caller)}
            problem = f"the file does not show the {' and the '.join(self.assumed)} that it wants"
            assumed = " and ".join(values[part] for part in self.assumed)
            remedy = (
                f"it is served with {assumed}; say what is right with --color, --normalisation or --family"
            )
            warnings.append(Issue(problem, remedy))
        expected = graph and contradicts(self.caller, graph.normalisation)
        if graph and expected:
            problem = f"the graph itself does {graph.normalisation}, so its callers give it {expected}"
            warnings.append(Issue(problem, f"{self.caller} is used, as stated; leave --normalisation out"))
        return [*warnings, *self.served.issues] if takes_one_crop(self.served.model) else warnings

    @property
    def normalisation(self) -> Normalisation:
        """All that happens to the pixels before the first convolution, by the caller and by the graph."""
        return self._seen[0] if self._seen else self.caller

    def embed(self, crops: Crops) -> Embeddings:
        """Embed crops as a careful user of the source would: with its preprocessing, one by one.

        Args:
            crops: uint8 [N, 112, 112, 3], BGR.

        Returns:
            float32 [N, D], unit rows.

        Raises:
            NotArcFaceError: The network gives no direction for a crop.
        """
        order = ["RGB".index(channel) for channel in self.channels]
        rows = unit_rows(self.network.run(self.caller.apply(crops)[:, order]))
        if not np.isfinite(rows).all():
            broken = _not_finite(self.proto)
            raise NotArcFaceError(
                f"{self.origin.name} holds NaN or infinite values in {', '.join(broken)}; fetch it again."
                if broken
                else "The network gives NaN or a vector of length 0 where its callers give it "
                f"{self.caller}; check its weights, or state with --normalisation what it wants."
            )
        return rows.astype(np.float32)

    @cached_property
    def served(self) -> Served:
        """The fastest serving graph whose embeddings are the source's, alone and in batches."""
        crops = np.concatenate([noise(1, _SEED), face_like(2, _SEED)])
        expected = self.embed(crops)
        one_by_one = "crops are embedded one by one, and max_batch_size is 1; export it with a free batch"
        reason = None
        # Folding rounds otherwise, and a network that quantises makes a whole step of that on some crops.
        steps = any(node.op_type.endswith("QuantizeLinear") for node in self.network.model.graph)
        for make, problem, remedy in (
            (self._optimised, "", ""),
            (self._wrapped, "the network cannot be folded", "it is served as it is"),
            (self._one_by_one, "the network does not serve batches", one_by_one),
        )[steps:]:
            try:
                served = make()
                difference = _difference(embedder(served.model), crops, expected)
            except RUN_ERRORS as error:
                difference = f"ONNX Runtime: {first_line(error)}"
            if difference is None:
                if reason is None:
                    return served
                return replace(served, issues=(Issue(f"{problem} ({reason})", remedy), *served.issues))
            reason = reason or difference
        raise NotArcFaceError(f"No serving graph gives the source's embeddings ({difference}).")

    def serving_graph(self, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """Its serving graph as a file; see ``graph.serving``."""
        return to_file(self.served.model, metadata or {})

    def save(self, path: Path) -> None:
        """Write the source's ONNX file, which InsightFace reads."""
        onnx.save_model(self.proto, path)

    @property
    def _unshown(self) -> str:
        return "InsightFace's own code" if self.origin.kind == "insightface" else ASSUMED

    @property
    def _seen(self) -> Preparation | None:
        """What the first convolution sees, where the graph normalises by channel."""
        graph = self.preprocessing
        if graph is None:
            return None
        channels = "".join(self.channels[index] for index in graph.order)
        return self.caller.then(graph.normalisation.of_channels(channels)), channels

    def _optimised(self) -> Served:
        network = self.network
        model, issues = simplify(network.model.clone(), network.reshapes, network.image.batch)
        given = (self.caller, self.channels)
        graph, kept = optimise(model, network.image, network.output, given, self._seen)
        if kept:
            issues.append(Issue(kept, "the preprocessing is not folded into the first convolution"))
        return Served(graph, (*issues, *free_batch(network.model)))

    def _wrapped(self) -> Served:
        network = self.network
        model, issues = raised(network.model, below=OLDEST_OPSET)
        graph = wrap(model, network.image, network.output, (self.caller, self.channels))
        return Served(graph, (*issues, *free_batch(network.model)))

    def _one_by_one(self) -> Served:
        network, wrapped = self.network, self._wrapped()
        return Served(crop_by_crop(wrapped.model, network.image, network.output), ())


def _not_finite(proto: onnx.ModelProto) -> list[str]:
    """Names of a file's weights that hold NaN or infinite values; four of them at most."""
    weights = ((tensor.name, onnx.numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer)
    return [name for name, array in weights if array.dtype.kind == "f" and not np.isfinite(array).all()][:4]


def _difference(embed: Embed, crops: Crops, expected: Embeddings) -> str | None:
    """What is wrong with a serving graph's embeddings of crops in any batch size; None if nothing is."""
    for size in range(1, len(crops) + 1):
        embeddings = in_batches(embed, crops, size)
        if embeddings.shape != expected.shape:
            return f"{len(crops)} crops give {list(embeddings.shape)}, expected {list(expected.shape)}"
        difference = float(np.abs(embeddings - expected).max())
        if not difference <= TOLERANCE:
            return f"in batches of {size} its embeddings differ from the source's by {difference:.2g}"
    return None
