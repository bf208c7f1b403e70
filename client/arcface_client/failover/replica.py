"""What is known of one candidate at this moment."""

from __future__ import annotations

import math

from ..errors import (
    ArcFaceError,
    DeadlineExceededError,
    DeploymentError,
    DriftError,
    ModelLoadingError,
    OtherEmbeddingSpaceError,
    TransientError,
    detached,
)
from ..models.manifest import PlanManifest
from .cooldown import Breaker
from .discovery import Candidate
from .golden_check import Evidence, Finding
from .intervals import Rhythm
from .loads import Loads
from .server import Server


class Contender:
    """A candidate with its client, its breaker and what was found of it.

    Not thread-safe: its owner holds a lock.
    """

    def __init__(self, candidate: Candidate, server: Server, rhythm: Rhythm) -> None:
        self.candidate = candidate
        self.server = server
        self.client = server.client(candidate.model, candidate.version)
        self.version = candidate.version
        """The version that was examined; for a pin without one, the one that answered."""
        self.plan: PlanManifest | None = None
        """What is recorded here of that version's plan."""
        self.loads = Loads()
        self.reloads = 0
        """How often its server was seen to have loaded it anew."""
        self.breaker = Breaker(rhythm.breaker)
        self.finding: Finding | None = None
        self.error: ArcFaceError | None = DeploymentError("not examined yet")
        """Why it cannot serve, as far as this is not the finding's to say."""
        self.evidence: Evidence | None = None
        """Live crops that it was wrong on."""
        self._rhythm = rhythm
        self._examine_at = -math.inf
        self._drifts = False

    def __str__(self) -> str:
        return str(self.candidate)

    def wants_examination(self, now: float, *, afresh: bool) -> bool:
        """Whether the golden crops should be sent through it."""
        if self.breaker.has_settled or (afresh and (self.error is not None or self._drifts)):
            return True
        return now >= self._examine_at and (self.breaker.state != "open" or self.breaker.due)

    def found(self, finding: Finding, objection: ArcFaceError | None, now: float) -> None:
        """Take the result of an examination, and what speaks against it."""
        self.finding = finding
        self.error = None
        self.answered(len(finding.embeddings), self.loads.begin())
        self._drifts = isinstance(objection, DriftError)
        self.breaker.probed(good=objection is None)
        # What belongs to another gallery does not change its mind as what is broken may.
        steady = objection is None or isinstance(objection, OtherEmbeddingSpaceError)
        self._examine_at = now + (self._rhythm.prove_again_s if steady else self._rhythm.refused_again_s)

    def not_examined(self, error: ArcFaceError, now: float) -> None:
        """Take the error that ended an examination."""
        if isinstance(error, TransientError) and self.error is None:
            # It was right a while ago, and calls will tell whether it is still there.
            self._examine_at = now + self._rhythm.refused_again_s
            return
        # One that hangs would keep the others waiting at every look.
        soon = isinstance(error, TransientError) and not isinstance(error, DeadlineExceededError)
        self._examine_at = -math.inf if soon else now + self._rhythm.refused_again_s
        self._out(error)

    def withdrawn(self, error: ArcFaceError) -> None:
        """Its server says that it is not ready, or says nothing."""
        self._examine_at = -math.inf
        self._out(error)

    def loaded_anew(self) -> None:
        """Its server has loaded it again: it is out until it is proved, which counts as no failure."""
        self._examine_at = -math.inf
        if self.error is None:
            self.error = ModelLoadingError("the server has loaded it anew; it has to be examined first")
        # Only now: a call that begins behind it must find the error.
        self.reloads += 1

    def answered(self, crops: int, begun: int) -> None:
        """Crops of a call, which began when ``loads`` said so, were embedded."""
        batch_size = self.client.max_batch_size
        if batch_size is not None:
            self.loads.answered(math.ceil(crops / batch_size), begun)

    def failed(self, error: ArcFaceError, *, certain: bool) -> None:
        """A call failed; ``certain`` when there is no doubt that the next one would, too."""
        if self.error is not None:
            return
        self.breaker.failed(certain=certain)
        if self.breaker.state == "open":
            self.error = detached(error)
            self.version = self.candidate.version
            # Whatever comes back there has to be proved anew.
            self._examine_at = -math.inf

    def _out(self, error: ArcFaceError) -> None:
        if self.error is None:
            self.breaker.failed(certain=True)
        elif self.breaker.due:
            self.breaker.probed(good=False)
        self.error = detached(error)
        self.finding = None
        self.version = self.candidate.version
