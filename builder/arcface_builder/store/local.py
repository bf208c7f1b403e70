"""The local cache of plans: a plan is there whole or not at all, and is checked whenever it is used.

A plan and its manifest are written into a staging folder, flushed to the disk, the manifest last, and the
folder is renamed to where its identity belongs. That rename is the moment from which the plan exists;
it is never changed afterwards, so that a reader cannot see one builder's plan beside another's manifest.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from arcface_client.models.cache import cache_folder

from ..errors import CacheError, PlanError, PlanGoneError, PlanManifestError, PlanSchemaError
from ..repository.disk import flush
from .cache_errors import cache_errors
from .cached_files import cached_files, compare_plan, read_manifest_of, try_rename
from .identity import PlanIdentity
from .plan_manifest import ENDING, PlanManifest, check_plan
from .stored_plan import DamagedManifest, Objection, StoredPlan, no_objection

_log = logging.getLogger(__name__)

_STAGING_LIFETIME_S: Final = 24 * 3600  # what is older was left by a process that was killed


class LocalStore:
    """Plans on this machine's disk.

    Args:
        root: The cache's folder; None is ``cache_folder()``. It is made when something is stored.
    """

    name = "local cache"

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_folder()).resolve()

    def find(self, identity: PlanIdentity) -> StoredPlan | None:
        """Look for a plan and check all of it; one that is damaged is removed, with a warning.

        Raises:
            CacheError: The cache cannot be read.
        """
        plan = self.root / identity.key
        while True:
            with cache_errors(self.root, "read"):
                try:
                    return self._checked(plan, identity.key)
                except FileNotFoundError:
                    return None
                except PlanSchemaError as error:
                    raise CacheError(
                        f"Cannot use the cache {self.root}: {error} Set ARCFACE_CACHE_DIR to another folder."
                    ) from error
                except PlanError as error:
                    if self._discard_unless_good(plan, identity.key):
                        _log.warning("Removed a plan from the cache, to be made again: %s", error)

    def manifests(self, model: str = "") -> Iterator[PlanManifest | DamagedManifest]:
        """Every plan's manifest, or what is wrong with it; of one model, if its name is given.

        Raises:
            CacheError: The cache cannot be read.
        """
        beginning, ending = f"{model}-" if model else "", f".plan{ENDING}"
        with cache_errors(self.root, "read"):
            records = list(cached_files(self.root / "engines"))
        for record in records:
            if not (record.name.startswith(beginning) and record.name.endswith(ending)):
                continue
            plan = record.with_name(record.name.removesuffix(ENDING))
            key = plan.relative_to(self.root).as_posix()
            try:
                manifest: PlanManifest | DamagedManifest = read_manifest_of(plan, key)
            except FileNotFoundError:
                continue  # removed meanwhile
            except PlanManifestError as error:
                manifest = DamagedManifest(key, str(error), is_foreign=isinstance(error, PlanSchemaError))
            except OSError as error:
                manifest = DamagedManifest(key, f"The manifest {record} cannot be read: {error.strerror}.")
            yield manifest

    def check(self, manifest: PlanManifest) -> StoredPlan:
        """Compare a plan's bytes with its manifest.

        Raises:
            PlanGoneError: It is no longer the plan that was listed.
            PlanError: They differ.
            CacheError: The plan cannot be read.
        """
        plan = self.root / manifest.identity.key
        with cache_errors(self.root, "read"):
            try:
                return compare_plan(plan, manifest)
            except PlanError as error:
                if not self._has(manifest):
                    raise PlanGoneError(
                        f"{plan} was removed or replaced while it was looked at; look again."
                    ) from error
            return compare_plan(plan, manifest)  # who took it away to judge it may have put it back

    def add(self, plan: bytes, manifest: PlanManifest, objection: Objection = no_objection) -> StoredPlan:
        """Store a plan, unless there is one of the same identity, which then is the one that counts.

        Args:
            plan: The plan.
            manifest: Its manifest.
            objection: What there is against a plan that is there, which then is replaced.

        Raises:
            PlanError: The plan is not what the manifest describes.
            CacheError: The cache cannot be written, or the disk is full; nothing was stored.
        """
        check_plan(plan, manifest, where="The plan to be stored")
        with self.staging() as folder:
            with cache_errors(self.root, "write"):
                (folder / manifest.identity.filename).write_bytes(plan)
            return self.commit(folder, manifest, objection)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to put a plan in, for ``commit``; it goes with the block.

        Raises:
            CacheError: The cache cannot be written, or the disk is full.
        """
        with ExitStack() as taken:
            with cache_errors(self.root, "write"):
                staging = self.root / "staging"
                staging.mkdir(parents=True, exist_ok=True, mode=0o700)
                for left in staging.iterdir():
                    with suppress(FileNotFoundError):  # its process has just removed it
                        if time.time() - left.stat().st_mtime > _STAGING_LIFETIME_S:
                            shutil.rmtree(left, ignore_errors=True)
                made = tempfile.TemporaryDirectory(dir=staging, ignore_cleanup_errors=True)
                content = Path(taken.enter_context(made)) / "engine"
                content.mkdir()
            yield content

    def commit(self, folder: Path, manifest: PlanManifest, objection: Objection = no_objection) -> StoredPlan:
        """Publish a staging folder that holds a plan, which was checked; see ``add``.

        Raises:
            CacheError: The cache cannot be written, or the disk is full; nothing was stored.
        """
        plan = self.root / manifest.identity.key
        with cache_errors(self.root, "write"):
            flush(folder / plan.name)
            record = folder / f"{plan.name}{ENDING}"
            record.write_text(manifest.to_json(), encoding="utf-8")
            flush(record)
            flush(folder)
            plan.parent.parent.mkdir(parents=True, exist_ok=True)
            while not try_rename(folder, plan.parent):
                there = self.find(manifest.identity)
                if there and objection(there.manifest) is None:
                    return there
                # Or half a plan: somebody took a file out of it.
                self._discard_unless_good(plan, manifest.identity.key, objection)
            flush(plan.parent.parent)
        return StoredPlan(plan, manifest)

    def remove(self, manifest: PlanManifest) -> bool:
        """Remove a plan, unless another one has taken its place since it was listed.

        Returns:
            Whether it was removed here.

        Raises:
            CacheError: The cache cannot be written.
        """

        def unwanted(found: PlanManifest) -> str | None:
            return "It is the one to remove." if found.plan_sha256 == manifest.plan_sha256 else None

        key = manifest.identity.key
        with cache_errors(self.root, "write"):
            return self._discard_unless_good(self.root / key, key, unwanted)

    def _has(self, manifest: PlanManifest) -> bool:
        """Whether the manifest that is there says the same bytes; raises a PlanManifestError if damaged."""
        key = manifest.identity.key
        try:
            return read_manifest_of(self.root / key, key).plan_sha256 == manifest.plan_sha256
        except FileNotFoundError:
            return False

    def _checked(self, plan: Path, key: str) -> StoredPlan:
        return compare_plan(plan, read_manifest_of(plan, key))

    def _discard_unless_good(self, plan: Path, key: str, objection: Objection = no_objection) -> bool:
        """Remove a plan by a rename, so that nobody sees a part of it; a good one is put back.

        Somebody may have mended it since it was judged.

        Returns:
            Whether it was removed here.
        """
        if self._is_good(plan, key, objection):  # so that few that are good are ever taken away
            return False
        with self.staging() as folder:
            taken = folder.with_name("discarded")
            try:
                plan.parent.rename(taken)
            except FileNotFoundError:  # somebody else was faster
                return False
            try:
                good = self._is_good(taken / plan.name, key, objection)
            except BaseException:  # Ctrl-C, too: nothing is known of it
                try_rename(taken, plan.parent)
                raise
            if not good:
                return True
            try_rename(taken, plan.parent)  # or else there is a newer one, as good
            return False

    def _is_good(self, plan: Path, key: str, objection: Objection) -> bool:
        try:
            return objection(self._checked(plan, key).manifest) is None
        except PlanSchemaError:  # another version of this project's
            return True
        except (FileNotFoundError, PlanError):
            return False
