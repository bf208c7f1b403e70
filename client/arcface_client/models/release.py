"""Which version of a model is released: parameters of its configuration, which servers tell their clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

RELEASE: Final = "release"
CANARY: Final = "canary"
CANARY_SHARE: Final = "canary_share"

NOT_THE_RELEASE: Final = "not the release"


@dataclass(frozen=True)
class Release:
    """What a model's configuration says of its versions.

    Attributes:
        version: The version that calls go to; older ones stand in for it, newer ones do not serve. None where
            releases are not managed: then the newest version serves.
        canary: Another version that gets a share of the calls.
        share: That share, 0 to 1; 0 while a promotion loads and checks it.
    """

    version: int | None = None
    canary: int | None = None
    share: float = 0.0

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> Release:
        """Read it from the parameters; what is not a positive number counts as missing."""
        version, canary = (_whole(parameters.get(name, "")) for name in (RELEASE, CANARY))
        try:
            share = float(parameters.get(CANARY_SHARE, "0"))
        except ValueError:
            share = 0.0
        return cls(version, canary, share if canary and 0 < share <= 1 else 0.0)

    def parameters(self) -> dict[str, str]:
        """The parameters that say it."""
        said = {} if self.version is None else {RELEASE: str(self.version)}
        if self.canary is not None:
            said |= {CANARY: str(self.canary), CANARY_SHARE: f"{self.share:g}"}
        return said

    def is_canary(self, version: int | None) -> bool:
        """Whether a version gets only a share of the calls."""
        return self.share > 0 and version == self.canary

    def role(self, version: int | None) -> str | None:
        """What a version is: "release", "canary", "not the release"; None where releases are not managed."""
        if self.version is None or version is None:
            return None
        if version == self.version:
            return RELEASE
        return CANARY if self.is_canary(version) else NOT_THE_RELEASE

    def holds_back(self, version: int | None) -> bool:
        """Whether a version must not serve yet, or not any more."""
        if self.version is None or version is None:
            return False
        return version > self.version and not self.is_canary(version)


def _whole(text: str) -> int | None:
    return int(text) or None if text.isdecimal() else None
