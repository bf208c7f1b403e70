"""The model repository on disk: versions appear whole or not at all, and are never changed.

A build writes into a staging folder, flushes it to the disk, and renames the finished version into
place; that rename is the moment from which the version exists. Whatever dies before it leaves the
repository as it was. A file lock makes publishing one builder's business at a time, and a lock on each
staging folder tells the next builder which ones nobody will finish.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import OptionError, RepositoryError
from .model_config import CONFIG_FILE

LOCK_FILE: Final = ".lock"
_OWNER_FILE: Final = ".owner"
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What Triton, a file system, an object store and a shell all take as it is.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """Check a model name and give it back.

    Raises:
        OptionError: It holds characters that a folder or Triton cannot take.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"Model name {name!r} cannot be used; expected up to 100 letters, digits, '_', '-' and '.', "
            "starting with a letter or digit, e.g. arcface_r100."
        )
    return name


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
        folder = self.root / model
        names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
        return sorted(int(name) for name in names if name.isdecimal())

    def manifest_path(self, model: str, version: int) -> Path:
        """Where the record of a version is: a plain file in the root, which Triton passes over."""
        return self.root / f"{model}-{version}.manifest.json"

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty folder to build a version in; it is gone afterwards, whatever happens.

        Raises:
            RepositoryError: The disk is full, or the repository cannot be written.
        """
        with os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self._sweep()
                folder = Path(tempfile.mkdtemp(prefix=self._staging_prefix, dir=self._staging_parent()))
                owner = _locked(folder / _OWNER_FILE)
        try:
            content = folder / "version"
            with os_errors(self.root):
                content.mkdir()
                yield content
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(owner)

    def publish(self, model: str, content: Path, *, config: str, manifest: Callable[[int], str]) -> Published:
        """Make a staged folder the next version of a model.

        Args:
            model: Name of the model.
            content: The staged folder with the version's files.
            config: Text of the model's ``config.pbtxt``.
            manifest: Gives the text of the version's record.

        Raises:
            RepositoryError: The disk is full, or the repository cannot be written.
        """
        with os_errors(self.root), self.lock():
            version = max(self.versions(model), default=0) + 1
            folder, staged = self.root / model, content.parent
            replace_text(self.manifest_path(model, version), manifest(version), via=staged)
            for path in content.iterdir():
                flush(path)
            flush(content)
            if folder.is_dir():
                # Triton reloads every version when the file is touched: leave it alone if it is the same.
                if not _reads(folder / CONFIG_FILE, config):
                    replace_text(folder / CONFIG_FILE, config, via=staged)
                content.rename(folder / str(version))
                flush(folder)
            else:
                # A server that polls must not see a model without its configuration or version.
                model_folder = staged / "model"
                model_folder.mkdir()
                content.rename(model_folder / str(version))
                replace_text(model_folder / CONFIG_FILE, config, via=staged)
                model_folder.rename(folder)
            flush(self.root)
        return Published(version, folder / str(version))

    @property
    def _staging_prefix(self) -> str:
        return f".{self.root.name}-staging-"

    def _staging_parent(self) -> Path:
        """The folder beside the repository, where Triton does not look.

        In the repository it would take even a hidden folder for a model. That has to do where the
        repository is a mount of its own, since a rename must stay on one file system.
        """
        parent = self.root.parent
        beside = os.access(parent, os.W_OK) and parent.stat().st_dev == self.root.stat().st_dev
        return parent if beside else self.root

    def _sweep(self) -> None:
        """Remove the staging folders of builders that died: nobody holds their lock."""
        for parent in {self.root, self.root.parent}:
            for folder in parent.glob(f"{self._staging_prefix}*"):
                try:
                    owner = _locked(folder / _OWNER_FILE, wait=False)
                except OSError:
                    continue  # its builder is at work, or it is somebody else's
                shutil.rmtree(folder, ignore_errors=True)
                os.close(owner)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who changes what is published."""
        descriptor = _locked(self.root / LOCK_FILE)
        try:
            yield
        finally:
            os.close(descriptor)


def _locked(path: Path, *, wait: bool = True) -> int:
    """Open and lock a file; the lock goes with the descriptor, so with the process at the latest."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def replace_text(path: Path, text: str, *, via: Path) -> None:
    """Write a file so that it is the old one or the new one at any moment."""
    temporary = via / "replacement"
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)


def _reads(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def flush(path: Path) -> None:
    """Have a file or a folder on the disk, not in its cache alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(root: Path) -> Iterator[None]:
    """Raise what the system refuses as a ``RepositoryError``."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise RepositoryError(
                f"No space left to write a version into {root} ({error.strerror}); "
                "make room and build again. Nothing was published."
            ) from error
        raise RepositoryError(
            f"Cannot write the model repository {root} ({error}); nothing was published."
        ) from error
