"""The model repository on disk: versions appear whole or not at all, and are never changed.

A build writes into a staging folder, flushes it to the disk, and renames the finished version into
place; that rename is the moment from which the version exists. Where the configuration changes too, the
whole model is put together from hard links and changes places with the old one, so that both switch at
once; a file system without that switches the configuration first. What dies before leaves the models as
they were, and at most the record of a version that never was: its number is not used again. A file lock
makes publishing one builder's business at a time, and a lock on each staging folder tells the next
builder which ones nobody will finish.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arcface_client.models import manifest as manifests
from arcface_client.models.repository import LocalModels

from ..errors import RepositoryError
from .config import CONFIG_FILE, config_changes
from .disk import NO_SPACE, flush, locked
from .exchange import exchange
from .staging import staging_folder, sweep

_log = logging.getLogger(__name__)

LOCK_FILE: Final = ".lock"


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
        """Where the record of a version is: a plain file in the root, which Triton passes over."""
        return manifests.manifest_path(self.root, model, version)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty folder to build a version in; it is gone afterwards, whatever happens.

        Raises:
            RepositoryError: The disk is full, or the repository cannot be written.
        """
        with os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with self.lock():
                sweep(self.root)
                folder, owner = staging_folder(self.root)
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
            manifest: Gives the text of the version's record.
            keep_config: Leave the configuration as it is if the model has one.

        Raises:
            RepositoryError: The disk is full, or the repository cannot be written.
        """
        with os_errors(self.root), self.lock():
            version = self._next_version(model)
            folder, record = self.root / model, self.manifest_path(model, version)
            path = folder / str(version)
            old = _bytes(folder / CONFIG_FILE)
            # Triton reloads every version when the file is touched: leave it alone if it is the same.
            kept = old is not None and (keep_config or old == config.encode())
            for file in content.iterdir():
                flush(file)
            flush(content)
            replace_text(record, manifest(version), via=content.parent)
            try:
                self._switch(folder, version, content, None if kept else config)
            finally:
                if not path.is_dir():
                    record.unlink(missing_ok=True)
            if old is not None and not kept:
                changes = config_changes(old.decode(errors="replace"), config)
                _log.warning("%s of all versions changes: %s", CONFIG_FILE, changes)
            try:
                flush(folder)
                flush(self.root)
            except OSError as error:
                raise RepositoryError(
                    f"Version {version} is published in {path}, but may not survive a power cut ({error}); "
                    "mend the disk and check the version's SHA-256 against its manifest."
                ) from error
        return Published(version, path)

    def _next_version(self, model: str) -> int:
        """One more than any version that is, or that a record says was: a number never changes meaning."""
        records = re.compile(rf"{re.escape(model)}-(\d+)\.manifest\.json")
        recorded = [int(match[1]) for path in self.root.iterdir() if (match := records.fullmatch(path.name))]
        return max([0, *self.versions(model), *recorded]) + 1

    def _switch(self, folder: Path, version: int, content: Path, config: str | None) -> None:
        """Put a version into place, and with it a new configuration, if there is one."""
        if config is None:
            content.rename(folder / str(version))
            return
        whole = content.parent / "model"
        if not folder.is_dir():
            # A server that polls must not see a model without its configuration or version.
            whole.mkdir()
            content.rename(whole / str(version))
            replace_text(whole / CONFIG_FILE, config, via=content.parent)
            flush(whole)
            whole.rename(folder)
            return
        try:
            shutil.copytree(folder, whole, symlinks=True, copy_function=os.link)
            shutil.copytree(content, whole / str(version), copy_function=os.link)
            replace_text(whole / CONFIG_FILE, config, via=content.parent)
            flush(whole)
            exchange(whole, folder)
        except OSError as error:
            _log.info("Configuration and version switch one after the other (%s)", error)
            replace_text(folder / CONFIG_FILE, config, via=content.parent)
            content.rename(folder / str(version))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock on what is published."""
        descriptor = locked(self.root / LOCK_FILE)
        try:
            yield
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str, *, via: Path) -> None:
    """Write a file so that it is the old one or the new one at any moment."""
    temporary = via / "replacement"
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


@contextmanager
def os_errors(root: Path) -> Iterator[None]:
    """Raise what the system refuses as a ``RepositoryError``."""
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
