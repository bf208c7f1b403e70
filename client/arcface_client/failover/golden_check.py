"""The golden check: does a model embed known crops as its source model did, and into the same space?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from ..contract import LENGTH_TOLERANCE, Embeddings
from ..errors import ContractError, DeploymentError, DriftError, OtherEmbeddingSpaceError
from ..models.embedding_space import FLOAT, EmbeddingSpace, SpaceName
from ..models.golden import GoldenReference, largest_drift
from ..models.naming import made_from
from ..observability.diagnostics import Diagnostics, Source, Validation
from ..triton.embed_request import Deadline, EmbedRequest

MANIFEST: Final = "manifest"
ONNX_SIBLING: Final = "onnx sibling"
ITSELF: Final = "itself"


class Model(Protocol):
    """A model that is ready to embed: one on a server, or one that is loaded into this process.

    Attributes:
        source: What it is.
        space: The embedding space, as far as it is known.
        reference: What the golden crops' embeddings must be, as recorded in its manifest; None when unknown.
    """

    source: Source
    space: EmbeddingSpace
    reference: GoldenReference | None

    def embed(self, request: EmbedRequest) -> None:
        """Embed what a request still misses; what is done before an error stays done.

        Raises:
            ArcFaceError: It failed, or the request's time is up.
        """

    def embed_golden(self, deadline: Deadline) -> Embeddings:
        """Embed the golden crops; raises an ArcFaceError if that fails."""

    def embed_golden_by_sibling(self, deadline: Deadline) -> Embeddings | None:
        """Embed the golden crops with a plan's ONNX sibling; None if it has none."""

    def diagnostics(self) -> Diagnostics:
        """What it is, without figures of calls."""

    def close(self) -> None:
        """Free it as soon as no call uses it any more."""


@dataclass(frozen=True, eq=False)
class Finding:
    """What the golden check found.

    Attributes:
        embeddings: The model's embeddings of the golden crops, float32 [8, D].
        reference: What they must be.
        compared_with: Where the reference comes from: "manifest", "onnx sibling" or "itself".
        drift: Largest drift from the reference; None when the model is its own reference.
    """

    embeddings: Embeddings
    reference: GoldenReference
    compared_with: str
    drift: float | None

    def validation(self, *, passed: bool) -> Validation:
        """The finding as diagnostics show it."""
        result = "passed" if passed else "failed"
        return Validation(
            drift_vs_reference=self.drift,
            reference=self.compared_with,
            regression_test=None if self.drift is None else result,
        )


def golden_check(model: Model, deadline: Deadline) -> Finding:
    """Embed the golden crops and compare them with the best reference there is.

    Raises:
        ContractError: The embeddings are not of length one.
        DeploymentError: The model is made from an ONNX model, and there is nothing to compare it with.
        ArcFaceError: The model could not embed them.
    """
    embeddings = model.embed_golden(deadline)
    _check_lengths(embeddings)
    if model.reference is not None:
        return _compared(embeddings, model.reference, MANIFEST)
    if made_from(model.source.model) is None:
        return Finding(embeddings, GoldenReference(embeddings, model.space), ITSELF, None)
    try:
        by_sibling = model.embed_golden_by_sibling(deadline)
    except DeploymentError as error:
        raise DeploymentError(
            f"Nothing to check it against: no manifest is here, and its ONNX sibling does not serve ({error})"
        ) from error
    if by_sibling is None:
        raise DeploymentError("Nothing to check it against: neither a manifest nor an ONNX sibling.")
    return _compared(embeddings, GoldenReference(by_sibling, model.space), ONNX_SIBLING)


def _check_lengths(embeddings: Embeddings) -> None:
    lengths = np.linalg.norm(embeddings, axis=1)
    worst = float(lengths[np.argmax(np.abs(lengths - 1))])
    if not abs(worst - 1) < LENGTH_TOLERANCE:
        raise ContractError(f"Its embeddings have length {worst:.3g}; expected 1.")


def _compared(embeddings: Embeddings, reference: GoldenReference, where: str) -> Finding:
    what = _other_width(embeddings, reference)
    if what is not None:
        raise OtherEmbeddingSpaceError(f"{what}, as the reference has ({where})")
    return Finding(embeddings, reference, where, largest_drift(embeddings, reference.embeddings))


def _other_width(embeddings: Embeddings, reference: GoldenReference) -> str | None:
    dim, expected = embeddings.shape[1], reference.embeddings.shape[1]
    return None if dim == expected else f"another width, embeddings of {dim} numbers, not {expected}"


def objection(
    finding: Finding,
    settled: GoldenReference | None,
    settled_by: str,
    max_drift: float,
    wanted: SpaceName | None = None,
) -> DeploymentError | None:
    """Why a model must not serve; None when it may.

    Args:
        finding: What its golden check found.
        wanted: The class of precision that the user asks for; None for any.
        settled: The embedding space of the pool; None before it is settled.
        settled_by: Name of the replica that settled it.
        max_drift: The tolerance.
    """
    max_drift = max(max_drift, finding.reference.drift)
    if finding.drift is not None and not finding.drift <= max_drift:  # so that NaN is refused as well
        return DriftError(
            f"its golden embeddings drift {finding.drift:.2g} from the reference ({finding.compared_with}); "
            f"max_drift_cosine allows {max_drift:g}",
            finding.drift,
        )
    precision_class = finding.reference.space.precision_class or FLOAT
    if wanted and not precision_class.startswith(wanted):
        return OtherEmbeddingSpaceError(
            f"it computes in {precision_class}, and embedding.space asks for {wanted}; their embeddings "
            "cannot be compared; change embedding.space, or in a pipeline name it in embedding.candidates"
        )
    if settled is None:
        return None
    what = _other_width(finding.embeddings, settled) or settled.space.conflict(finding.reference.space)
    if what is None:
        drift = largest_drift(finding.embeddings, settled.embeddings)
        if not drift <= max_drift:  # here, too
            what = f"another source model, its golden embeddings drift {drift:.2g}"
    if what is None:
        return None
    return OtherEmbeddingSpaceError(
        f"{what}, compared with {settled_by}, which settled the embedding space of this embedder; "
        "restart the embedder to change over, or pin its candidates"
    )
