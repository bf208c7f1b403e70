"""The model repository on disk: a version appears whole or not at all, and is never changed.

A version is written into a staging folder, flushed to the disk, and renamed into place: from that rename on
it exists. A new configuration then replaces the old one by a second rename. A build that dies before leaves
at most a manifest without a version, whose number is not used again. One lock serialises publishing; a lock
on each staging folder tells the next build which ones belong to a dead build.
"""

from __future__ import annotations

import logging
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from arcface_client.models import manifest as manifests
from arcface_client.models.manifest import MODEL_FILE
from arcface_client.models.naming import family, onnx_model, plan_model
from arcface_client.models.repository import LocalModels, LocalOnnx
from arcface_client.observability.versions import package_versions

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


class ModelRepository(LocalModels):
    """A folder of models that Triton reads, to write into; it is made when something is published."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.resolve())

    def manifest_path(self, model: str, version: int) -> Path:
        """Where the manifest of a version is: a plain file in the root, which Triton passes over."""
        return manifests.manifest_path(self.root, model, version)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock on what is published."""
        return locked(self.root / LOCK_FILE)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty folder to build a version in, which is removed afterwards in any case.

        Raises:
            RepositoryError: The disk is full, or the repository cannot be written, here or within the block.
        """
        with ExitStack() as stack, os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self._remove_dead_staging()
                folder = self._make_staging()
                stack.enter_context(locked(folder / _OWNER_FILE))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            content = folder / "version"
            content.mkdir()
            yield content

    def publish(
        self,
        model: str,
        content: Path,
        *,
        config: str,
        manifest: Callable[[int], str],
        keep_config: bool = False,
    ) -> int:
        """Make a staged folder the next version of a model, within the block of ``staging``.

        ``manifest`` gives the text of a version's manifest. All versions share the configuration; with
        ``keep_config``, the one that the model has stays as it is.

        Returns:
            The version.
        """
        with self.lock():
            version = self._next_version(model)
            path = self.root / model / CONFIG_FILE
            old = path.read_text("utf-8", "replace") if path.is_file() else None
            changes = old is None or not (keep_config or old == config)
            self.put(
                content,
                self.root / model / str(version),
                manifests={self.manifest_path(model, version): (MODEL_FILE, manifest(version))},
                configs={CONFIG_FILE: config} if changes else {},
            )
        if changes and old is not None:
            _log.warning("%s of all versions changes: %s", CONFIG_FILE, config_changes(old, config))
        return version

    def put(
        self,
        content: Path,
        version: Path,
        *,
        manifests: Mapping[Path, tuple[str, str]],
        configs: Mapping[str, str],
    ) -> None:
        """Write manifests, then rename staged files into a version, then replace configurations.

        A new version appears by one rename, and so does a new model with its configurations. The caller holds
        the lock.

        Args:
            content: The staged folder.
            version: The version's folder, which may exist; files that it has are not replaced.
            manifests: For each manifest's path, the staged file that it describes and the manifest's text.
            configs: The model's configurations that change, by their path in its folder. The others are
                not touched, since Triton then reloads every version.

        Raises:
            OSError: The disk failed; a manifest whose file did not appear was removed again.
            RepositoryError: The disk failed after the version had appeared.
        """
        model, via = version.parent, content.parent
        existed = model.is_dir()
        for staged in content.iterdir():
            flush(staged)
        flush(content)
        try:
            for path, (_, text) in manifests.items():
                replace_text(path, text, via=via)
            if version.is_dir():
                for staged in sorted(content.iterdir()):
                    if not (version / staged.name).is_file():
                        staged.rename(version / staged.name)
                flush(version)
            elif existed or not configs:
                content.rename(version)
            else:
                whole = via / "model"
                whole.mkdir()
                content.rename(whole / version.name)
                _replace_configs(whole, configs, via)
                whole.rename(model)
        finally:
            for path, (name, _) in manifests.items():
                if not (version / name).is_file():
                    path.unlink(missing_ok=True)
        try:
            if existed:
                _replace_configs(model, configs, via)
            flush(model)
            flush(self.root)
        except OSError as error:
            raise RepositoryError(
                f"Version {version.name} is published in {version}, but the disk failed after that "
                f"({error}): {CONFIG_FILE} may be the old one. Check the disk, and run the command again."
            ) from error

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
                with suppress(OSError), locked(folder / _OWNER_FILE, wait=False):
                    shutil.rmtree(folder, ignore_errors=True)

    @property
    def _staging_prefix(self) -> str:
        return f".{self.root.name}-staging-"


def _replace_configs(model: Path, configs: Mapping[str, str], via: Path) -> None:
    for name, text in configs.items():
        path = model / name
        path.parent.mkdir(exist_ok=True)
        replace_text(path, text, via=via)
        flush(path.parent)


def find_onnx(repository: ModelRepository, name: str, version: int | None = None) -> LocalOnnx:
    """Find the ONNX model to compile; by default its newest version.

    Raises:
        OptionError: The name is not allowed.
        ModelNotFoundError: There is no such model or version.
        ManifestError: It has no manifest, or the file is not the one that the manifest describes.
    """
    versions = repository.versions(onnx_model(check_name(name)))
    # Not the release: a version is compiled before it is promoted.
    return repository.onnx(name, version or (versions[-1] if versions else None))


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


def now() -> str:
    """The time as manifests have it: ISO 8601, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def tool_versions() -> dict[str, str]:
    """Versions of what builds models, for the manifests."""
    return {"python": platform.python_version(), **package_versions(_TOOLS)}
