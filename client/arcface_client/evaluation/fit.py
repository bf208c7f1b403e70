"""With which pixels the reference agrees with a model: shows a wrong channel order or normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..contract import Embeddings
from ..models.golden import golden_crops
from ..models.normalisation import NAMED, Pixels
from .scores import largest_drift
from .systems import System

USUAL: Final = tuple(
    Pixels(channels, normalisation) for normalisation in NAMED.values() for channels in ("RGB", "BGR")
)
"""What the networks of the field are given."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The pixels for the reference with which a model that drifts agrees best, on the golden crops.

    Attributes:
        model: The model.
        given: What the reference was given.
        drift_given: The largest drift then.
        best: What the model agrees best with.
        drift_best: The largest drift then.
        flags: How to state what was given.
    """

    model: str
    given: str
    drift_given: float
    best: str
    drift_best: float
    flags: str

    def __str__(self) -> str:
        if self.best == self.given:
            return (
                f"No usual channel order or normalisation explains the drift of {self.model}: it agrees best "
                f"with {self.given}, which the reference is given."
            )
        return (
            f"{self.model} agrees best with the reference as {self.best} (drift {self.drift_best:.2g}); the "
            f"reference was given {self.given} (drift {self.drift_given:.2g}). If the network takes what was "
            f"given, build the model again with {self.flags}; if not, state what it takes with these flags."
        )


def find_fits(reference: System, models: Mapping[str, Embeddings]) -> Sequence[Fit]:
    """Find for each model the usual pixels for the reference that it agrees best with.

    Args:
        reference: The baseline; one that cannot be given other pixels has no fits.
        models: Each model's embeddings of the golden crops, float32 [8, D], by its name.
    """
    given = reference.pixels
    if given is None or reference.embed_as is None or not models:
        return []
    as_pixels = {pixels: reference.embed_as(golden_crops(), pixels) for pixels in (given, *USUAL)}
    fits = []
    for name, embeddings in models.items():
        drift = {pixels: largest_drift(own, embeddings) for pixels, own in as_pixels.items()}
        best = min(drift, key=drift.__getitem__)
        fits.append(
            Fit(
                model=name,
                given=str(given),
                drift_given=drift[given],
                best=str(best),
                drift_best=drift[best],
                flags=given.arguments(),
            )
        )
    return fits
