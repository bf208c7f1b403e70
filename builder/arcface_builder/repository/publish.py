"""The model repository on disk: a version appears whole or not at all, and is never changed.

A version is written into a staging folder, flushed to the disk, and renamed into place: from that rename on
it exists. A new configuration then replaces the old one by a second rename. A build that dies before leaves
at most a manifest without a version, whose number is not used again. One lock serialises publishing; a lock
on each staging folder tells the next build which ones belong to a dead build.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from arcface_client.models import manifest as manifests
from arcface_client.models.naming import family, onnx_model, plan_model
from arcface_client.models.repository import LocalModels

from ..disk import NO_SPACE, flush, locked, replace_text
from ..errors import OptionError, RepositoryError
from .config import CONFIG_FILE, config_changes

_log = logging.getLogger(__name__)

LOCK_FILE: Final = ".lock"
_OWNER_FILE: Final = ".owner"
_PROBE_FILE: Final = ".probe"
_TOOLS: Final = ("arcface-triton", "numpy", "onnx", "onnx-ir", "onnxruntime")

# What Triton, a file system, an object store and a shell all accept.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Published:
    """A version that is in the repository."""

    version: int
    path: Path


class ModelRepository:
    """A folder of models that Triton reads.

    Args:
        root: The folder; it is made when something is published.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def versions(self, model: str) -> list[int]:
        """The versions of a model, oldest first."""
        return LocalModels(self.root).versions(model)

    def manifest_path(self, model: str, version: int) -> Path:
        """Where the manifest of a version is: a plain file in the root, which Triton passes over."""
        return manifests.manifest_path(self.root, model, version)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock on what is published."""
        descriptor = locked(self.root / LOCK_FILE)
        try:
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty folder to build a version in, which is removed afterwards in any case.

        Raises:
            RepositoryError: The disk is full, or the repository cannot be written.
        """
        with os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self._remove_dead_staging()
                folder = self._make_staging()
                owner = locked(folder / _OWNER_FILE)
        try:
            content = folder / "version"
            with os_errors(self.root):
                content.mkdir()
                yield content
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(owner)

    def publish(
        self,
        model: str,
        content: Path,
        *,
        config: str,
        manifest: Callable[[int], str],
        keep_config: bool = False,
    ) -> Published:
        """Make a staged folder the next version of a model.

        Args:
            model: Name of the model.
            content: The staged folder with the version's files.
            config: Text of the model's ``config.pbtxt``, which all versions share.
            manifest: Gives the text of the version's manifest.
            keep_config: Leave the configuration as it is if the model has one.

        Raises:
            RepositoryError: The disk is full, or the repository cannot be written.
        """
        with os_errors(self.root), self.lock():
            version = self._next_version(model)
            folder, record = self.root / model, self.manifest_path(model, version)
            path = folder / str(version)
            for staged in content.iterdir():
                flush(staged)
            flush(content)
            replace_text(record, manifest(version), via=content.parent)
            try:
                place(content, path, config)
            finally:
                if not path.is_dir():
                    record.unlink(missing_ok=True)
            try:
                self._replace_config(folder / CONFIG_FILE, config, keep_config, via=content.parent)
                flush(folder)
                flush(self.root)
            except OSError as error:
                raise RepositoryError(
                    f"Version {version} is published in {path}, but the disk failed after that ({error}): "
                    f"{CONFIG_FILE} may be the old one. Check the disk and build again."
                ) from error
        return Published(version, path)

    def _replace_config(self, path: Path, config: str, keep: bool, *, via: Path) -> None:
        """Replace a configuration that differs: Triton reloads every version when the file is touched."""
        old = path.read_text("utf-8", "replace") if path.is_file() else None
        if old == config or (keep and old is not None):
            return
        replace_text(path, config, via=via)
        if old is not None:
            _log.warning("%s of all versions changes: %s", CONFIG_FILE, config_changes(old, config))

    def _next_version(self, model: str) -> int:
        """One more than any version on disk or in a manifest: a number never changes its meaning."""
        records = re.compile(rf"{re.escape(model)}-(\d+)\.manifest\.json")
        recorded = [int(match[1]) for path in self.root.iterdir() if (match := records.fullmatch(path.name))]
        return max([0, *self.versions(model), *recorded]) + 1

    def _make_staging(self) -> Path:
        """Make a staging folder beside the repository.

        In the repository Triton would take even a hidden folder for a model. It lies there only where a file
        cannot be renamed into the repository from outside, as when that is a mount of its own.
        """
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=self._staging_prefix, dir=self.root.parent))
            (folder / _PROBE_FILE).touch()
            (folder / _PROBE_FILE).replace(self.root / _PROBE_FILE)
            (self.root / _PROBE_FILE).unlink()
        except OSError as error:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            if error.errno in NO_SPACE:
                raise
            return Path(tempfile.mkdtemp(prefix=self._staging_prefix, dir=self.root))
        return folder

    def _remove_dead_staging(self) -> None:
        """Remove the staging folders whose lock is free: their builds died."""
        for parent in {self.root, self.root.parent}:
            for folder in parent.glob(f"{self._staging_prefix}*"):
                try:
                    owner = locked(folder / _OWNER_FILE, wait=False)
                except OSError:
                    continue
                shutil.rmtree(folder, ignore_errors=True)
                os.close(owner)

    @property
    def _staging_prefix(self) -> str:
        return f".{self.root.name}-staging-"


@dataclass(frozen=True)
class OnnxVersion:
    """A version of the ONNX model that plans are built from.

    Attributes:
        name: Name of the family of models, for example "arcface_r100".
        version: Its number, which its plans have too.
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
    """Find the ONNX model to compile; by default its newest version.

    Raises:
        OptionError: The name is not allowed.
        ModelNotFoundError: There is no such model or version.
        ManifestError: It has no manifest, or the file is not the one that the manifest describes.
    """
    found = LocalModels(repository.root).onnx(check_name(name), version)
    return OnnxVersion(name, found.version, found.path, found.path.read_bytes(), found.manifest.source.sha256)


def place(content: Path, version: Path, config: str) -> None:
    """Rename a staged folder into a model; a new model appears with its configuration in the same rename."""
    model = version.parent
    if model.is_dir():
        content.rename(version)
        return
    whole = content.parent / "model"
    whole.mkdir()
    content.rename(whole / version.name)
    replace_text(whole / CONFIG_FILE, config, via=content.parent)
    flush(whole)
    whole.rename(model)


@contextmanager
def os_errors(root: Path) -> Iterator[None]:
    """Raise an OSError as a ``RepositoryError``."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise RepositoryError(
                f"No space left to write a version into {root} ({error.strerror}); "
                "make room, and run the command again. Nothing was published."
            ) from error
        raise RepositoryError(
            f"Cannot write the model repository {root} ({error}); nothing was published."
        ) from error


def check_name(name: str) -> str:
    """Check the name of a family of models and return it.

    Raises:
        OptionError: It has characters that a folder or Triton cannot take, or is the name of a model.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"Model name {name!r} cannot be used; expected up to 100 letters, digits, '_', '-' and '.', "
            "starting with a letter or digit, for example arcface_r100."
        )
    if name != family(name):
        raise OptionError(
            f"{name!r} is the name of a model; expected the name that it shares with its siblings, "
            f"{family(name)!r}, for {onnx_model(family(name))} and {plan_model(family(name))}."
        )
    return name


def tool_versions() -> dict[str, str]:
    """Versions of what builds models, for the manifests."""
    versions = {"python": platform.python_version()}
    for package in _TOOLS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "unknown"
    return versions
