"""The store of plans: the local cache, and behind it a bucket that machines share."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..errors import (
    BucketError,
    BucketUnreachableError,
    PlanError,
    PlanGoneError,
    PlanManifestError,
    PlanSchemaError,
)
from .cache_errors import cache_errors
from .identity import PlanIdentity
from .local import LocalStore
from .locks import building_lock
from .place import Place, readable
from .plan_manifest import PlanManifest
from .stored_plan import Objection, StoredPlan, no_objection

if TYPE_CHECKING:  # boto3 is an extra
    from .s3 import S3Store

_log = logging.getLogger(__name__)

_BUCKET_FAILED: Final = (BucketError, BucketUnreachableError, PlanError, PlanGoneError)


class PlanStore:
    """Where a plan is looked for before it is built, and left afterwards.

    ::

        with store.building(identity):
            stored = store.fetch(identity)
            if stored is None:
                stored = store.put(plan, manifest)

    ``fetch`` and ``put`` warn and do without the bucket when it fails: a machine with a GPU can build what
    cannot be downloaded. ``pull`` and ``push`` are about the bucket, and fail with it.

    Args:
        local: The cache on this machine.
        remote: The bucket, if there is one.
    """

    def __init__(self, local: LocalStore, remote: S3Store | None = None) -> None:
        self.local = local
        self.remote = remote

    def fetch(self, identity: PlanIdentity, objection: Objection = no_objection) -> StoredPlan | None:
        """Find a plan, checked byte for byte, and say where it was, or why there is none.

        Args:
            identity: The plan's.
            objection: What there is against a plan, which then counts as not there.

        Raises:
            CacheError: The local cache cannot be used.
        """
        try:
            return self.pull(identity, objection)
        except _BUCKET_FAILED as error:
            _log.warning("Miss: there is no good %s in the local cache. %s", identity.filename, error)
            return None

    def put(self, plan: bytes, manifest: PlanManifest, objection: Objection = no_objection) -> StoredPlan:
        """Store a plan here, and in the bucket if it can be reached, wherever there is no good one.

        Args:
            plan: The plan.
            manifest: Its manifest.
            objection: What there is against a plan, which then is replaced.

        Raises:
            PlanError: The plan is not what the manifest describes.
            CacheError: The local cache cannot be used; nothing was stored.
        """
        stored = self.local.add(plan, manifest, objection)
        if self.remote:
            try:
                # It may have been unreachable when the plan was looked for, or what is there is damaged.
                if not _has_good(self.remote, manifest.identity, objection):
                    self.push(stored.manifest, overwrite=True)
            except _BUCKET_FAILED as error:
                push = f"arcface-builder engines push {shlex.join(self.remote.flags)}"
                push += " --overwrite" if isinstance(error, PlanSchemaError) else ""
                _log.warning(
                    "%s is in the local cache only. %s Then run `%s`.", stored.path.name, error, push
                )
        return stored

    def pull(self, identity: PlanIdentity, objection: Objection = no_objection) -> StoredPlan | None:
        """Find a plan as ``fetch`` does, with the bucket's failures as errors.

        Raises:
            PlanError: What the bucket has is not what its manifest says.
            PlanGoneError: The bucket's plan went while it was looked at.
            StoreError: The bucket or the local cache cannot be used.
        """
        name = identity.filename
        stored = self.local.find(identity)
        if stored and _is_good(stored.manifest, objection, self.local.name):
            _log.info("Hit: %s is in the local cache, %s", name, stored.path.parent)
            if self.remote:
                share = f"arcface-builder engines push {shlex.join(self.remote.flags)}"
                _log.info("The %s may lack it; `%s` shares what it lacks", self.remote.name, share)
            return stored
        manifest = self.remote.find(identity) if self.remote else None
        if self.remote is None or manifest is None:
            if stored is None:
                self._explain_miss(identity)
            return None
        if not _is_good(manifest, objection, self.remote.name):
            return None
        with self.local.staging() as folder:
            with cache_errors(self.local.root, "write"):
                self.remote.download(manifest, folder)
            stored = self.local.commit(folder, manifest, objection)
        _log.info("Hit: %s came from the %s", name, self.remote.name)
        return stored

    def push(self, manifest: PlanManifest, *, overwrite: bool = False) -> bool:
        """Upload a plan of the local cache, unless the bucket has one of the same identity and all its bytes.

        Args:
            manifest: The plan's.
            overwrite: Replace the bucket's plan.

        Returns:
            Whether it was uploaded.

        Raises:
            PlanError: The plan is not what its manifest says.
            PlanGoneError: It went while it was looked at.
            StoreError: The bucket or the local cache cannot be used.
            ValueError: There is no bucket.
        """
        if self.remote is None:
            raise ValueError("this store has no bucket to push to")
        stored = self.local.check(manifest)
        try:
            there = self.remote.find(manifest.identity)  # which also tells whether anybody answers as S3 does
        except PlanManifestError as error:
            if isinstance(error, PlanSchemaError) and not overwrite:
                raise
            there = None
            _log.warning("Replacing what the bucket has: %s", error)
        if there and not overwrite:
            if self.remote.has_plan(there):
                return False
            _log.warning("%s in the bucket is missing or cut off; replacing it", there.identity.key)
        self.remote.upload(stored)
        return True

    @contextmanager
    def building(self, identity: PlanIdentity) -> Iterator[None]:
        """Hold this machine's lock on building a plan; look for it again inside.

        Raises:
            CacheError: The local cache cannot be written.
        """
        with building_lock(self.local.root, identity.digest, identity.filename):
            yield

    def manifests(self) -> list[PlanManifest]:
        """Every plan of every place, newest first; see ``where``.

        Raises:
            StoreError: The bucket or the local cache cannot be used.
        """
        found = (manifest for manifest, _ in self.where())
        return sorted(found, key=lambda manifest: manifest.created_at, reverse=True)

    def where(self) -> list[tuple[PlanManifest, list[Place]]]:
        """Every plan, and the places that have it.

        Two machines' builds of one plan are two; and two builds may give the same bytes and yet be judged
        differently.

        Raises:
            StoreError: The bucket or the local cache cannot be used.
        """
        found: dict[str, tuple[PlanManifest, list[Place]]] = {}
        for place in self._places():
            for manifest in readable(place):
                found.setdefault(manifest.to_json(), (manifest, []))[1].append(place)
        return list(found.values())

    @property
    def places(self) -> str:
        """Where plans are looked for, for messages."""
        bucket = f" and the {self.remote.name}" if self.remote else ", with no bucket"
        return f"{self.local.name} ({self.local.root}){bucket}"

    def _explain_miss(self, identity: PlanIdentity) -> None:
        others = [other.identity for place in self._places() for other in readable(place, identity.model)]
        where = f"{self.local.name} or the {self.remote.name}" if self.remote else self.local.name
        _log.info("Miss: %s is not in the %s%s", identity.filename, where, _nearest(identity, others))

    def _places(self) -> list[Place]:
        return [self.local, self.remote] if self.remote else [self.local]


def _is_good(manifest: PlanManifest, objection: Objection, where: str) -> bool:
    """Whether there is nothing against a plan; says so if there is."""
    against = objection(manifest)
    if against is not None:
        _log.warning("Miss: %s in the %s is not good enough. %s", manifest.identity.filename, where, against)
    return against is None


def _has_good(bucket: S3Store, identity: PlanIdentity, objection: Objection) -> bool:
    """Whether a bucket has a plan that is what its manifest says; it is downloaded for that."""
    try:
        manifest = bucket.find(identity)
        if manifest is not None:
            if objection(manifest) is not None:
                return False
            bucket.check(manifest)
    except PlanGoneError:
        return _has_good(bucket, identity, objection)  # another one may have come in its place
    except PlanSchemaError:
        raise
    except PlanError as error:
        _log.warning("Replacing what the bucket has: %s", error)
        return False
    return manifest is not None


def _nearest(wanted: PlanIdentity, stored: Iterable[PlanIdentity]) -> str:
    """Say what keeps the most similar plan of the same model from being the wanted one."""
    differences = [
        wanted.differences(other) for other in stored if other.model == wanted.model and other != wanted
    ]
    if not differences:
        return "."
    nearest = sorted(differences, key=len)[0]
    return f"; the nearest there has {', '.join(nearest)}."
