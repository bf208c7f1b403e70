"""Candidates: which models of which servers may serve, and in what order. Nothing here asks a server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..errors import ArcFaceError, ConfigError, ModelLoadingError, ModelNotFoundError, ModelNotReadyError
from ..models.naming import onnx_model, plan_model

if TYPE_CHECKING:
    from ..triton.status import ModelStatus

_PIN: Final = re.compile(r"(?P<model>[^\s:]+)(?::(?P<version>[1-9]\d*))?")


@dataclass(frozen=True)
class Candidate:
    """One version of one model at one server; without a version, the newest that the server has ready."""

    url: str
    model: str
    version: int | None

    def __str__(self) -> str:
        version = "" if self.version is None else f":{self.version}"
        return f"{self.model}{version} at {self.url}"


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

    def covers(self, candidate: Candidate) -> bool:
        """Whether a candidate is what was named."""
        return candidate.model == self.model and self.version in (None, candidate.version)

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model}:{self.version}"


@dataclass(frozen=True)
class Sighting:
    """A candidate as its server's list of models shows it; ``problem`` is None when it is ready."""

    candidate: Candidate
    problem: ArcFaceError | None = None


@dataclass(frozen=True)
class Wanted:
    """What to look for at which servers, and what to prefer.

    Attributes:
        urls: The servers, ``host:port``, best first.
        name: Base name of the models: ``{name}_trt`` goes before ``{name}_onnx``, then the newest version
            goes first, then the order of the URLs.
        pins: Models to take instead of those, best first.
    """

    urls: tuple[str, ...]
    name: str
    pins: tuple[Pin, ...] = ()
    _models: tuple[Pin, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        siblings = (Pin(plan_model(self.name)), Pin(onnx_model(self.name)))
        object.__setattr__(self, "_models", self.pins or siblings)

    def preference(self, candidate: Candidate) -> tuple[int, int, int]:
        """What to sort candidates by, the one to use first."""
        model = next(place for place, pin in enumerate(self._models) if pin.covers(candidate))
        return model, -(candidate.version or 0), self.urls.index(candidate.url)

    def release(self, candidate: Candidate) -> tuple[int, ...]:
        """What to sort candidates by, the one that settles the embedding space first: the newest release.

        With pins, it is the user's order.
        """
        preference = self.preference(candidate)
        return preference if self.pins else (preference[1], preference[0], preference[2])

    def sight(self, url: str, models: Sequence[ModelStatus] | None) -> list[Sighting]:
        """Find the candidates of a server.

        Args:
            url: The server.
            models: What it lists; None when it does not tell, so that only pins can be used.

        Raises:
            ModelNotFoundError: It has none of the models.
        """
        if models is None:
            if not self.pins:
                raise ModelNotFoundError(
                    "the server does not list its models (a restricted protocol); name them as candidates, "
                    f"for example {self._models[0]}"
                )
            return [Sighting(Candidate(url, pin.model, pin.version)) for pin in self.pins]
        sightings = list(self._sight(url, models))
        if not sightings:
            known = ", ".join(sorted({model.name for model in models})) or "none"
            wanted = " or ".join(map(str, self._models))
            raise ModelNotFoundError(f"the server has no {wanted}; its models: {known}")
        return sightings

    def _sight(self, url: str, models: Sequence[ModelStatus]) -> Iterator[Sighting]:
        seen = set()
        for pin in self._models:
            for status in models:
                candidate = Candidate(url, status.name, status.version)
                if pin.covers(candidate) and candidate not in seen:
                    seen.add(candidate)
                    yield Sighting(candidate, _problem(status))
        for pin in self.pins:
            if not any(pin.covers(candidate) for candidate in seen):
                versions = [str(model.version) for model in models if model.name == pin.model]
                known = f"its versions: {', '.join(versions)}" if versions else "no such model"
                problem = ModelNotFoundError(f"the server does not have it ({known})")
                yield Sighting(Candidate(url, pin.model, pin.version), problem)


def _problem(status: ModelStatus) -> ArcFaceError | None:
    if status.ready:
        return None
    if status.state in ("LOADING", "UNLOADING"):
        return ModelLoadingError(f"the server is {status.state.lower()} it")
    return ModelNotReadyError(f"not ready: {status.reason or 'the server has not loaded it'}")
