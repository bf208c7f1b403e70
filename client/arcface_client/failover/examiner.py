"""Examines candidates: by their records, their tensors and the golden crops."""

from __future__ import annotations

from collections.abc import Callable

from ..contract import Embeddings
from ..errors import DeploymentError
from ..models.golden import golden_crops
from ..models.manifest import PlanManifest
from ..models.naming import sibling_of
from ..runtimes.base import Embed
from ..triton.deadline import Deadline
from .golden_check import Finding, References, SettledIdentity, conflicting, examine, objection, recorded
from .replica import Contender

Plans = Callable[[str, int], PlanManifest | None]
"""What is recorded of the plan that a model's version must be, as ``LocalModels.only_plan``."""


def no_records(model: str, version: int) -> None:
    """What is recorded where no model repository can be read."""


class Examiner:
    """Knows what is recorded here, and how much drift is allowed.

    Args:
        references: What is recorded of a model's version, as ``LocalModels.golden``.
        max_drift: Largest drift of the golden crops that is allowed.
        plans: What is recorded of plans.
    """

    def __init__(self, references: References, max_drift: float, plans: Plans = no_records) -> None:
        self._references = references
        self._plans = plans
        self.max_drift = max_drift

    def examine(self, contender: Contender, identity: SettledIdentity | None, deadline: Deadline) -> Finding:
        """Look at a candidate's record and tensors, and send the golden crops through it.

        Live crops that it was wrong on, too.

        Raises:
            OtherEmbeddingSpaceError: Its record says that it is another's.
            ArcFaceError: It cannot be used, or not now.
        """
        model, version = contender.candidate.model, self._version(contender, deadline)
        record = recorded(self._references, model, version)
        conflict = None if record is None or identity is None else conflicting(record, identity)
        if conflict is not None:
            raise conflict
        plan = None if version is None else self._plans(model, version)
        server, sibling = contender.server, sibling_of(model)

        def embed_by(name: str) -> Embed:
            client = server.client(name, version, modest=True)
            return lambda crops: client.encode(crops, timeout_s=deadline.remaining_s())

        with server.call():
            # A new client, since the model may have come back with another batch size or other tensors.
            client = server.client(model, version)
            client.ensure_ready(timeout_s=deadline.remaining_s())
            finding = examine(embed_by(model), model, record, None if sibling is None else embed_by(sibling))
            if contender.evidence is not None:
                contender.evidence.check(embed_by(model), self.max_drift)
        contender.client, contender.version, contender.plan = client, version, plan
        return finding

    def _version(self, contender: Contender, deadline: Deadline) -> int | None:
        """The version to examine; for a pin without one, the one that answers, to which it is held then."""
        if contender.version is not None:
            return contender.version
        with contender.server.call():
            client = contender.server.client(contender.candidate.model, None, modest=True)
            client.encode(golden_crops()[:1], timeout_s=deadline.remaining_s())
        return client.answered_by

    def examine_here(self, embeddings: Embeddings, model: str, version: int | None) -> Finding:
        """Look at what a model in this process made of the golden crops.

        Raises:
            ArcFaceError: It cannot be used.
        """
        return examine(lambda crops: embeddings, model, recorded(self._references, model, version), None)

    def objection(self, finding: Finding, identity: SettledIdentity | None) -> DeploymentError | None:
        """Why what was found must not serve; None when it may."""
        return objection(finding, identity, self.max_drift)
