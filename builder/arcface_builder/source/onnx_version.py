"""A version of an ONNX model in the repository, which plans are made from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from arcface_client.models.repository import LocalModels

from ..repository.publish import ModelRepository, check_name


@dataclass(frozen=True)
class OnnxVersion:
    """A version of the ONNX model that plans are made from.

    Attributes:
        name: Name of the family of models, as "arcface_r100".
        version: Its number, which the plans get too.
        path: The file.
        content: Its bytes.
        source_sha256: SHA-256 of the source model that it was built from.
    """

    name: str
    version: int
    path: Path
    content: bytes
    source_sha256: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()


def find_onnx(repository: ModelRepository, name: str, version: int | None = None) -> OnnxVersion:
    """Find the ONNX model to compile; the newest version unless one is named.

    Raises:
        OptionError: The name cannot be one.
        ModelNotFoundError: There is no such model or version.
        ManifestError: Nothing is recorded of it, or the file is another than the one recorded.
    """
    found = LocalModels(repository.root).onnx(check_name(name), version)
    return OnnxVersion(name, found.version, found.path, found.path.read_bytes(), found.manifest.source.sha256)
