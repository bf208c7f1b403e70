"""A version of an ONNX model in the repository, which plans are made from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from arcface_client.manifests import MODEL_FILE

from .errors import RepositoryError
from .repository import ModelRepository, check_name


@dataclass(frozen=True)
class OnnxVersion:
    """A version of the ONNX model that plans are made from.

    Attributes:
        name: Name of the family of models, as "arcface_r100".
        version: Its number, which the plans get too.
        path: The file.
        content: Its bytes.
    """

    name: str
    version: int
    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()


def find_onnx(repository: ModelRepository, name: str, version: int | None = None) -> OnnxVersion:
    """Find the ONNX model to compile; the newest version unless one is named.

    Raises:
        OptionError: The name cannot be one.
        RepositoryError: There is no such model or version.
    """
    model = f"{check_name(name)}_onnx"
    versions = repository.versions(model)
    if not versions or version not in (None, *versions):
        asked = f"version {version} of {model}" if version and versions else model
        there = f"it has {', '.join(map(str, versions))}" if versions else "run `arcface-builder build` first"
        raise RepositoryError(f"{repository.root} has no {asked}; {there}.")
    number = version or versions[-1]
    path = repository.root / model / str(number) / MODEL_FILE
    return OnnxVersion(name, number, path, path.read_bytes())
