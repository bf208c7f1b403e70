"""The cache of plans on this machine: a plan is there whole or not at all, and every read checks it.

A plan and its manifest are written into a staging folder and flushed to the disk. One rename puts the folder
in its place. From that moment on the plan exists, and it is never changed.
"""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from arcface_client.models.files import cache_folder
from arcface_client.models.plan_manifest import PlanKey, PlanManifest

from ..disk import flush, locked
from ..errors import CacheError, PlanDamagedError
from .stored import MANIFEST_ENDING, Entry, StoredPlan, check_plan, read_manifest

_log = logging.getLogger(__name__)

_STAGING_LIFETIME_S: Final = 24 * 3600  # an older folder was left by a process that was killed


class LocalStore:
    """Plans in a folder on this machine.

    Every method raises ``CacheError`` where the folder cannot be read or written; a plan that was being added
    is not stored then.

    Args:
        root: The folder; None means ``cache_folder()``. It is made when something is stored.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_folder()).resolve()
        self.name = f"cache {self.root}"

    def find(self, key: PlanKey) -> StoredPlan | None:
        """Look for a plan and check all its bytes; a damaged one is removed with a warning."""
        plan = self.root / key.key
        with self._errors():
            try:
                return self.check(self._entry(plan))
            except FileNotFoundError:
                return None
            except PlanDamagedError as error:
                _log.warning("Removed a plan from the cache: %s", error)
                self._discard(plan.parent)
                return None

    def entries(self) -> Iterator[Entry]:
        """List the plans by their manifests, damaged ones included."""
        with self._errors():
            found = sorted((self.root / "engines").rglob(f"*.plan{MANIFEST_ENDING}"))
            for record in found:
                try:
                    yield self._entry(record.with_name(record.name.removesuffix(MANIFEST_ENDING)))
                except FileNotFoundError:
                    continue  # another process has just removed it

    def check(self, entry: Entry) -> StoredPlan:
        """Compare a plan's bytes with its manifest.

        Raises:
            PlanDamagedError: They differ, or the manifest cannot be used.
        """
        plan, manifest = self.root / entry.path, entry.usable_manifest()
        try:
            check_plan(plan, manifest, where=str(plan))
        except FileNotFoundError as error:
            raise PlanDamagedError(f"{plan} is missing beside its manifest.") from error
        return StoredPlan(plan, manifest)

    def add(self, plan: Path, manifest: PlanManifest) -> StoredPlan:
        """Move a plan from a ``staging`` folder into the cache, unless one with the same key is there.

        Returns:
            The plan that is there now.

        Raises:
            PlanDamagedError: The plan is not what the manifest describes.
        """
        key = manifest.identity
        target = self.root / key.key
        with self.staging() as folder, self._errors():
            staged = folder / "plan" / target.name
            staged.parent.mkdir()
            plan.rename(staged)
            check_plan(staged, manifest, where=str(plan))
            record = staged.with_name(staged.name + MANIFEST_ENDING)
            record.write_text(manifest.to_json(), encoding="utf-8")
            for path in (staged, record, staged.parent):
                flush(path)
            target.parent.parent.mkdir(parents=True, exist_ok=True)
            while not _renamed(staged.parent, target.parent):
                if found := self.find(key):
                    return found
                self._discard(target.parent)  # half a plan, of which a file was removed
            flush(target.parent.parent)
        return StoredPlan(target, manifest)

    def remove(self, entry: Entry) -> None:
        """Remove a plan and its manifest."""
        with self._errors():
            self._discard((self.root / entry.path).parent)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty folder on the cache's file system; it is removed after the block."""
        with self._errors():
            staging = self.root / "staging"
            staging.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in staging.iterdir():
                with suppress(FileNotFoundError):  # another process has just removed it
                    if time.time() - left.stat().st_mtime > _STAGING_LIFETIME_S:
                        shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=staging))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def building(self, key: PlanKey) -> Iterator[None]:
        """Hold this machine's lock on building a plan; it ends with the process at the latest."""
        with ExitStack() as stack:
            with self._errors():
                folder = self.root / "locks"
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                try:
                    stack.enter_context(locked(folder / key.digest, wait=False))
                except BlockingIOError:
                    _log.info("Another process is building %s; waiting for it.", key.filename)
                    stack.enter_context(locked(folder / key.digest))
            yield

    def timing_cache(self, tensorrt: str, gpu: str) -> Path:
        """Where TensorRT's measurements of kernels are kept, for one version of it and one model of GPU."""
        return self.root / "timing" / f"{tensorrt}-{gpu.replace(' ', '-').replace('/', '-')}.cache"

    def _entry(self, plan: Path) -> Entry:
        record = plan.with_name(plan.name + MANIFEST_ENDING)
        return read_manifest(
            record.read_bytes(), path=plan.relative_to(self.root).as_posix(), place=self.name
        )

    def _discard(self, folder: Path) -> None:
        """Remove a plan's folder by a rename first, so that a reader sees all of it or nothing."""
        with self.staging() as staging, suppress(FileNotFoundError):  # another process removed it
            folder.rename(staging / "discarded")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CacheError(
                f"Cannot use the {self.name} ({error}); make room, for example with `arcface-builder engines "
                "prune`, or set ARCFACE_CACHE_DIR to another folder."
            ) from error


def _renamed(folder: Path, target: Path) -> bool:
    """Rename a folder; False if the target exists already."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
