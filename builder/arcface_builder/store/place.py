"""Places for plans: the local cache and the bucket, as the store sees them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol

from .plan_manifest import PlanManifest
from .stored_plan import DamagedManifest

_log = logging.getLogger(__name__)


class Place(Protocol):
    """What the local cache and the bucket have in common."""

    def manifests(self, model: str = "") -> Iterator[PlanManifest | DamagedManifest]:
        """Every plan's manifest, or what is wrong with it; of one model, if its name is given."""

    def check(self, manifest: PlanManifest) -> object:
        """Compare a plan's bytes with its manifest.

        Raises:
            PlanError: They differ.
            PlanGoneError: It is no longer the plan that was listed.
        """

    def remove(self, manifest: PlanManifest) -> bool:
        """Remove a plan, unless another one has taken its place; tells whether it was removed."""


def readable(place: Place, model: str = "") -> Iterator[PlanManifest]:
    """A place's plans, with a warning for each manifest that is damaged.

    Raises:
        StoreError: The place cannot be used.
    """
    for manifest in place.manifests(model):
        if isinstance(manifest, DamagedManifest):
            _log.warning("%s", manifest.problem)
        else:
            yield manifest
