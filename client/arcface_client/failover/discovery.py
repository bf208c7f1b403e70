"""Candidates: which models of which servers may serve, and in what order. Nothing here asks a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ..errors import (
    AccessError,
    ArcFaceError,
    ConfigError,
    ModelNotFoundError,
    ModelNotReadyError,
    NotReleasedError,
)
from ..models.naming import family_models
from ..models.release import Release
from ..triton.status import Reply, Target, model_error

_PIN: Final = re.compile(r"(?P<model>[^\s:]+)(?::(?P<version>[1-9]\d*))?")


@dataclass(frozen=True)
class Pin:
    """A model that the user named, and perhaps its version."""

    model: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pin:
        """Read ``arcface_r100_trt:3`` or ``arcface_r100_onnx``.

        Raises:
            ConfigError: The text is neither.
        """
        match = _PIN.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"The candidate is {text!r}; expected a model's name, for example arcface_r100_onnx, or one "
                "with a version from 1, for example arcface_r100_trt:3."
            )
        return cls(match["model"], None if match["version"] is None else int(match["version"]))

    def covers(self, candidate: Target) -> bool:
        """Whether a candidate is what was named."""
        return candidate.model == self.model and self.version in (None, candidate.version)

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model}:{self.version}"


@dataclass(frozen=True)
class Wanted:
    """What to look for at which servers, and what to prefer.

    Attributes:
        urls: The servers, ``host:port``, best first.
        name: Base name of the models: they go in the order of ``models``, then the newest version goes first,
            then the order of the URLs.
        pins: Models to take instead of those, best first.
        models: The models of that name, best first; none means those of ``family_models``.
        spread: Whether all servers are as good, so that each call goes to the one with the fewest under way.
    """

    urls: tuple[str, ...]
    name: str
    pins: tuple[Pin, ...] = ()
    models: tuple[str, ...] = ()
    spread: bool = False

    @cached_property
    def _models(self) -> tuple[Pin, ...]:
        return self.pins or tuple(map(Pin, self.models or family_models(self.name)))

    def preference(self, candidate: Target, release: Release) -> tuple[int, int, int, int]:
        """What to sort candidates by, the first to use: releases, what stands in for them, canaries."""
        model = next(place for place, pin in enumerate(self._models) if pin.covers(candidate))
        version = candidate.version or 0
        url = 0 if self.spread else self.urls.index(candidate.url)
        place = 0 if self.pins else 2 if release.is_canary(version) else int(version < (release.version or 0))
        return place, model, -version, url

    def release(self, candidate: Target, release: Release) -> tuple[int, ...]:
        """What to sort candidates by, the one that settles the embedding space first: the newest release.

        With pins, it is the user's order.
        """
        place, model, version, url = self.preference(candidate, release)
        return (place, model, version, url) if self.pins else (place, version, model, url)

    def has(self, model: str) -> bool:
        """Whether a model is among those to look for."""
        return any(pin.model == model for pin in self._models)

    def sight(
        self, url: str, reply: Reply, releases: Mapping[str, Release] | None = None
    ) -> dict[Target, ArcFaceError | None]:
        """Find the candidates of a server.

        Args:
            url: The server.
            reply: Its models; where it does not list them, only pins can be used.
            releases: Which version of each model is released. A pin with a version overrules it.

        Returns:
            Why each candidate is not ready; None when it is.

        Raises:
            ModelNotFoundError: It has none of the models.
            AccessError: It does not list its models, and there are no pins.
        """
        models = reply.models
        pinned = {pin: Target(url, pin.model, pin.version) for pin in self.pins}
        if models is None:
            if not self.pins:
                raise AccessError(
                    f"the server does not list its models ({reply.problem}); give the token or key that it "
                    "wants, as triton.token_file or triton.metadata, or name them as candidates, for example "
                    f"{self._models[-1]}"
                )
            return dict.fromkeys(pinned.values())
        listed = {Target(url, model.name, model.version): model.problem for model in models}
        found = {one: why for one, why in listed.items() if any(pin.covers(one) for pin in self._models)}
        for one in found.keys() - pinned.values():
            release = (releases or {}).get(str(one.model), Release())
            if found[one] is None and release.holds_back(one.version):
                found[one] = NotReleasedError(
                    f"it is not the release (version {release.version} is); `arcface-builder release "
                    "promote` changes that"
                )
        for pin, candidate in pinned.items():
            if not any(pin.covers(one) for one in found):
                found[candidate] = model_error(candidate, models)
            elif isinstance(why := found.get(candidate), NotReleasedError):
                found[candidate] = ModelNotReadyError(str(why))  # it was asked for all the same
        if not found:
            known = ", ".join(sorted({model.name for model in models})) or "none"
            wanted = " or ".join(map(str, self._models))
            raise ModelNotFoundError(f"the server has no {wanted}; its models: {known}")
        return found
