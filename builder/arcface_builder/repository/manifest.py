"""The record of a build: what went in, what came out, what was proved, and how to make it again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from arcface_client.contract import INPUT_SPEC, OUTPUT_SPEC
from arcface_client.models.manifest import SCHEMA_VERSION

from ..check.accuracy import AccuracyReport
from ..source.load import Location
from ..source.normalisation import Triple
from ..source.reference import Reference
from ..source.source_model import Origin

_TOOLS: Final = ("arcface-triton", "numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class ModelFile:
    """The served file: its name in the version's folder, size and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Preprocessing:
    """All that happens between a crop's bytes and the first convolution, now inside the graph.

    Attributes:
        mean: Subtracted from R, G and B, in pixel values 0 to 255.
        std: What R, G and B are divided by then.
        channels: Channel order of the source model's input; the serving graph's is BGR.
        found_in: How the caller's part is known.
    """

    mean: Triple
    std: Triple
    channels: str
    found_in: str


@dataclass(frozen=True)
class Golden:
    """The source model's embeddings of the golden crops, by which a client tells a model that is another one.

    Attributes:
        crops_sha256: SHA-256 of the golden crops.
        embeddings: Base64 of float32 [8, 512], little-endian, unit rows.
    """

    crops_sha256: str
    embeddings: str


@dataclass(frozen=True)
class Manifest:
    """A build's record, written beside the model as JSON.

    Attributes:
        model: Name of the model in the repository.
        version: Its version.
        created: When, UTC, ISO 8601.
        source: What the source model is.
        source_location: Where it was, for whoever compares a plan with it: see ``sources.located``.
        repairs: What was wrong with the source, and what was done about it.
        model_file: The served file.
        preprocessing: What the graph does to the pixels.
        compared_with: What the served file was compared with: the source file itself, or its mended copy.
        parity: How exactly the served file gives the source's embeddings.
        golden: What a client compares with.
        rebuild_command: The command that builds it again, for people.
        contract: Tensors: name, Triton data type, shape without batch.
        tools: Versions of what built it.
        schema_version: Version of this record's fields.
    """

    model: str
    version: int
    created: str
    source: Origin
    source_location: Location
    repairs: list[str]
    model_file: ModelFile
    preprocessing: Preprocessing
    compared_with: Reference
    parity: AccuracyReport
    golden: Golden
    rebuild_command: str
    contract: Mapping[str, Any] = field(
        default_factory=lambda: {"input": INPUT_SPEC, "output": OUTPUT_SPEC, "channels": "BGR", "length": 1}
    )
    tools: Mapping[str, str] = field(default_factory=lambda: tool_versions())
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Write the record as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def tool_versions() -> dict[str, str]:
    """Versions of what builds models."""
    versions = {"python": platform.python_version()}
    for package in _TOOLS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "unknown"
    return versions
