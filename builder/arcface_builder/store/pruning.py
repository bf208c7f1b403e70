"""Which plans may go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ..errors import OptionError
from .identity import GPU_MODEL, PlanIdentity
from .plan_manifest import PlanManifest

_LARGEST: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PruneRule:
    """What makes a plan one that may go; where several things are given, all must hold.

    Attributes:
        keep: It is not among so many newest that can take each other's place.
        older_than_days: It was built so long ago.
        tensorrt_version: It was built by this TensorRT.

    Raises:
        OptionError: Nothing is given, which would be everything, or a number is out of range.
    """

    keep: int | None = None
    older_than_days: float | None = None
    tensorrt_version: str | None = None

    def __post_init__(self) -> None:
        numbers = [number for number in (self.keep, self.older_than_days) if number is not None]
        for number in numbers:
            if not 0 <= number <= _LARGEST:  # written so that NaN fails as well
                raise OptionError(f"Cannot prune by {number}; expected 0 to {_LARGEST:,}.")
        if not numbers and self.tensorrt_version is None:
            raise OptionError(
                "Nothing says what may go; expected --keep, --older-than-days or --tensorrt-version."
            )

    def choose(self, manifests: Iterable[PlanManifest], now: datetime) -> list[PlanManifest]:
        """Choose what may go, oldest first."""
        of_one_use = defaultdict(list)
        for manifest in sorted(manifests, key=lambda manifest: manifest.created_at, reverse=True):
            of_one_use[_use(manifest.identity)].append(manifest)
        rest = [manifest for group in of_one_use.values() for manifest in group[self.keep or 0 :]]
        chosen = [manifest for manifest in rest if self._allows(manifest, now)]
        return sorted(chosen, key=lambda manifest: manifest.created_at)

    def _allows(self, manifest: PlanManifest, now: datetime) -> bool:
        if self.older_than_days is not None and now - manifest.created_at < timedelta(
            days=self.older_than_days
        ):
            return False
        return self.tensorrt_version in (None, manifest.identity.tensorrt_version)


def _use(identity: PlanIdentity) -> tuple[object, ...]:
    """What a newer plan must have in common with an older one to take its place."""
    batches = (identity.min_batch_size, identity.opt_batch_size, identity.max_batch_size)
    return identity.filename, identity.platform, identity.settings.get(GPU_MODEL), *batches
