"""Whether what a candidate computes is what it has to be: the golden crops through it, and a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ..contract import LENGTH_TOLERANCE, Crops, Embeddings
from ..errors import ContractError, DeploymentError, OtherEmbeddingSpaceError
from ..models.golden import GoldenReference, drift_error, golden_crops, largest_drift
from ..models.naming import is_plan
from ..runtimes.base import Embed

References = Callable[[str, int], GoldenReference | None]
"""What is recorded of a model's version here, as ``LocalModels.golden``."""

MANIFEST: Final = "manifest"
ONNX_SIBLING: Final = "onnx sibling"
ITSELF: Final = "itself"


@dataclass(frozen=True, eq=False)
class Finding:
    """What the golden crops showed.

    Attributes:
        embeddings: The candidate's embeddings of them, float32 [8, 512].
        reference: What they have to be.
        compared_with: Where the reference is from: "manifest", "onnx sibling" or "itself".
        drift: Largest drift of the embeddings from the reference; None when that is they themselves.
    """

    embeddings: Embeddings
    reference: GoldenReference
    compared_with: str
    drift: float | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Live crops that a candidate was wrong on, which it has to get right before it serves again.

    Attributes:
        crops: uint8 [N, 112, 112, 3].
        embeddings: What they have to be, float32 [N, 512].
        given_by: Who says so.
    """

    crops: Crops
    embeddings: Embeddings
    given_by: str

    def check(self, embed: Embed, max_drift: float) -> None:
        """Embed the crops anew.

        Raises:
            DriftError: It is still wrong on one.
            ArcFaceError: It could not embed.
        """
        drift = largest_drift(embed(self.crops), self.embeddings)
        error = drift_error(drift, max_drift, "its embeddings of live crops that gave it away", self.given_by)
        if error is not None:
            raise error


@dataclass(frozen=True, eq=False)
class SettledIdentity:
    """The identity that an embedder keeps for its life.

    Attributes:
        settled_by: The candidate that settled it, for messages.
        reference: What the golden crops' embeddings have to be.
    """

    settled_by: str
    reference: GoldenReference

    def completed(self, reference: GoldenReference) -> SettledIdentity:
        """With what the reference of a candidate that passed knows, and nobody knew before.

        Else two candidates, each of which says nothing against the identity, could contradict each other.
        """
        space = self.reference.space.completed(reference.space)
        return replace(self, reference=replace(self.reference, space=space))


def recorded(references: References, model: str, version: int | None) -> GoldenReference | None:
    """What is recorded of a candidate here; None when nothing is.

    Raises:
        ManifestError: What is recorded cannot be true.
    """
    return None if version is None else references(model, version)


def examine(embed: Embed, model: str, record: GoldenReference | None, sibling: Embed | None) -> Finding:
    """Embed the golden crops and compare them with what they have to be.

    Args:
        embed: Embeds by the candidate.
        model: The candidate's model.
        record: What is recorded of it.
        sibling: Embeds by its ONNX sibling of the same version at the same server, which a plan is compared
            with when nothing is recorded; None where there is none to ask.

    Raises:
        ContractError: The embeddings are not of length one.
        DeploymentError: It is a plan, and there is nothing to compare it with.
        ArcFaceError: It could not embed; the error is the one of the call.
    """
    embeddings = embed(golden_crops())
    lengths = np.linalg.norm(embeddings, axis=1)
    worst = float(lengths[np.argmax(np.abs(lengths - 1))])
    if not abs(worst - 1) < LENGTH_TOLERANCE:
        raise ContractError(f"it gives embeddings of length {worst:.3g}; expected 1")
    if record is not None:
        return Finding(embeddings, record, MANIFEST, largest_drift(embeddings, record.embeddings))
    if not is_plan(model):
        return Finding(embeddings, GoldenReference(embeddings), ITSELF, None)
    if sibling is None:
        raise DeploymentError("nothing proves it: no manifest is here, and it has no ONNX sibling")
    try:
        reference = sibling(golden_crops())
    except DeploymentError as error:
        raise DeploymentError(
            f"nothing proves it: no manifest is here, and its ONNX sibling does not serve ({error})"
        ) from error
    return Finding(embeddings, GoldenReference(reference), ONNX_SIBLING, largest_drift(embeddings, reference))


def objection(finding: Finding, identity: SettledIdentity | None, max_drift: float) -> DeploymentError | None:
    """Why a candidate must not serve; None when it may."""
    if finding.drift is not None:
        reference = f"the reference ({finding.compared_with})"
        error = drift_error(finding.drift, max_drift, "its golden embeddings", reference)
        if error is not None:
            return error
    if identity is None:
        return None
    conflict = conflicting(finding.reference, identity)
    if conflict is not None:
        return conflict
    drift = largest_drift(finding.embeddings, identity.reference.embeddings)
    if not drift <= max_drift:  # written so that NaN is refused as well
        return _other(f"another source model, its golden embeddings drift {drift:.2g}", identity)
    return None


def conflicting(reference: GoldenReference, identity: SettledIdentity) -> OtherEmbeddingSpaceError | None:
    """What the records say against one gallery for both; None when they say nothing."""
    conflict = identity.reference.space.conflict(reference.space)
    return None if conflict is None else _other(conflict, identity)


def _other(what: str, identity: SettledIdentity) -> OtherEmbeddingSpaceError:
    return OtherEmbeddingSpaceError(
        f"{what}, compared with {identity.settled_by}, with which this embedder began; "
        "restart it to change over, or pin its candidates"
    )
