"""The state of all candidates: which serve, in what order, and why the others do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final

from ..errors import (
    ArcFaceError,
    DeadlineExceededError,
    DriftError,
    ModelNotFoundError,
    ServerError,
    ServerUnavailableError,
)
from ..observability.diagnostics import CandidateReport
from ..triton.deadline import Deadline
from ..triton.status import PROBE_TIMEOUT_S, unanswered
from .call import MARGIN_S
from .discovery import Sighting, Wanted
from .examiner import Examiner
from .golden_check import Evidence, Finding, SettledIdentity
from .intervals import Rhythm
from .ranking import Standing, anything_at, log_change, report, standing
from .reloads import reloaded
from .replica import Contender
from .roster import Roster
from .server import RequestLimits, Server

LONGEST_LOOK_S: Final = 120.0


class Selector:
    """Finds the candidates, examines them, and keeps them in order.

    ``standing`` is there for every call, ready made. ``look`` brings it up to date; who calls it often is
    not this class's matter.

    Args:
        wanted: What to look for.
        examiner: Says what they are worth.
        limits: Of requests.
        rhythm: How often candidates are looked at.
    """

    def __init__(self, wanted: Wanted, examiner: Examiner, limits: RequestLimits, rhythm: Rhythm) -> None:
        self.servers: Sequence[Server] = [Server(url, limits) for url in wanted.urls]
        self.standing = Standing()
        self.identity: SettledIdentity | None = None
        self._wanted = wanted
        self._examiner = examiner
        self._examination_s = rhythm.examination_s
        self._roster = Roster(self.servers, wanted, rhythm)
        self._looks = {False: 0, True: 0}  # by whether they were afresh
        self._looking = threading.Lock()
        self._state = threading.Lock()

    def look(
        self, deadline: Deadline, *, afresh: bool = False, timeout_s: float = PROBE_TIMEOUT_S
    ) -> Standing:
        """Ask the servers for their models, examine what is new or due, and rank.

        A thread that comes while another one looks waits for its result.

        Args:
            deadline: When to have ended.
            afresh: Examine everybody that is out at once, whenever that would be due.
            timeout_s: How long a server may take to list its models.

        Raises:
            DeadlineExceededError: The time is up; what is known is what was known before, at least.
        """
        looks = self._looks[afresh]
        if self._looking.acquire(timeout=deadline.remaining_s(LONGEST_LOOK_S)):
            try:
                if looks == self._looks[afresh]:
                    self._look(deadline, afresh, timeout_s)
                    self._looks[False] += 1
                    self._looks[True] += afresh
            finally:
                self._looking.release()
        deadline.remaining_s()
        return self.standing

    @property
    def has_looked(self) -> bool:
        """Whether every server was given its time to say what it has."""
        return self._looks[False] > 0

    def failed(self, contender: Contender, error: ArcFaceError) -> None:
        """A call to a candidate failed, through no fault of the caller's."""
        if isinstance(error, ServerUnavailableError):
            self.gone(contender.server, error)
            return
        certain = not isinstance(error, (DeadlineExceededError, ServerError))
        with self._state:
            contender.failed(error, certain=certain)
        self._rank()

    def gone(self, server: Server, error: ServerUnavailableError) -> None:
        """A server does not answer."""
        with self._state:
            for contender in self._roster.at(server):
                contender.failed(error, certain=True)
        self._rank()

    def succeeded(self, contender: Contender) -> None:
        """A call to a candidate succeeded."""
        with self._state:
            contender.breaker.succeeded()

    def demote(self, contender: Contender, evidence: Evidence, error: DriftError) -> None:
        """Live crops showed that a candidate is wrong: it is out until it gets them right."""
        with self._state:
            contender.evidence = evidence
            contender.not_examined(error, time.monotonic())
        self._rank()

    def accept(self, name: str, finding: Finding) -> None:
        """Let a way of embedding settle the identity, if nothing has yet, and else hold it to that.

        Raises:
            DeploymentError: It drifts, or is of another identity.
        """
        with self._state:
            problem = self._examiner.objection(finding, self.identity)
            if problem is not None:
                raise problem
            self._settle(name, finding)
        self._rank()

    def reports(self) -> tuple[CandidateReport, ...]:
        """Every candidate, by preference, and the servers of which none is known."""
        with self._state:
            first = self.standing.ranking[:1]
            reports = [
                report(contender, self._against(contender), serving=first == (contender,))
                for contender in self._roster.by_preference()
            ]
            silent = [
                CandidateReport(candidate=anything_at(url), state="refused", reason=str(error))
                for url, error in self._roster.silences().items()
            ]
        return (*reports, *silent)

    def close(self) -> None:
        """End all connections; calls that are under way fail."""
        for server in self.servers:
            server.connection.close()

    def _look(self, deadline: Deadline, afresh: bool, timeout_s: float) -> None:
        sightings = [found for server in self.servers for found in self._ask(server, deadline, timeout_s)]
        # The newest release settles the identity, and records then tell which older ones are another's.
        gone: dict[str, ArcFaceError] = {}
        for sighting in sorted(sightings, key=lambda found: self._wanted.release(found.candidate)):
            with self._state:
                contender = self._roster.contender(sighting.candidate)
            problem = sighting.problem or gone.get(contender.server.url)
            if problem is not None:
                with self._state:
                    contender.withdrawn(problem)
                continue
            error = self._consider(contender, deadline, afresh)
            self._rank()  # Calls need not wait for what may hang behind it.
            if isinstance(error, ServerUnavailableError):
                gone[contender.server.url] = error
        self._rank()

    def _ask(self, server: Server, deadline: Deadline, timeout_s: float) -> Sequence[Sighting]:
        """Ask a server for its models, and withdraw what it does not list."""
        asked_at = time.monotonic()
        answer = server.connection.ask(deadline.remaining_s(timeout_s))
        if not answer.answers:
            if server.connection.answered_since(asked_at):
                return ()
            if deadline.is_over(MARGIN_S):
                # The caller's time is over, which says nothing of the server.
                raise DeadlineExceededError(f"{server.url} had no time to list its models.")
        problem: ArcFaceError | None = None
        sightings: Sequence[Sighting] = ()
        if not answer.answers:
            problem = unanswered(server.url, answer.said)
        else:
            try:
                sightings = self._wanted.sight(server.url, answer.models)
            except ModelNotFoundError as error:
                problem = error
        seen = {sighting.candidate for sighting in sightings}
        with self._state:
            self._roster.listed(server, seen, problem)
        if seen:
            self._notice_reloads(server, deadline, timeout_s)
        return sightings

    def _notice_reloads(self, server: Server, deadline: Deadline, timeout_s: float) -> None:
        """Take out at once what the server has loaded anew: nobody knows yet what it is."""
        with self._state:
            here = self._roster.at(server)
        for contender in reloaded(here, server.connection, deadline, timeout_s):
            with self._state:
                contender.loaded_anew()
            self._rank()

    def _consider(self, contender: Contender, deadline: Deadline, afresh: bool) -> ArcFaceError | None:
        """Examine a candidate that its server has ready, if that is due, and return what ended it early."""
        if not contender.wants_examination(time.monotonic(), afresh=afresh):
            return None
        evidence = contender.evidence
        limit = Deadline(deadline.remaining_s(self._examination_s))
        try:
            finding = self._examiner.examine(contender, self.identity, limit)
        except ArcFaceError as error:
            if isinstance(error, DeadlineExceededError) and deadline.is_over(MARGIN_S):
                raise  # The caller's time is over, which says nothing of the candidate.
            with self._state:
                contender.not_examined(error, time.monotonic())
            return error
        with self._state:
            if contender.evidence is not evidence:
                return None  # It was demoted meanwhile.
            problem = self._examiner.objection(finding, self.identity)
            contender.found(finding, problem, time.monotonic())
            if problem is None:
                self._settle(str(contender), finding)
        return None

    def _settle(self, name: str, finding: Finding) -> None:
        """Take the identity of a candidate that passed for all, as far as it is not settled yet."""
        identity = self.identity or SettledIdentity(name, finding.reference)
        self.identity = identity.completed(finding.reference)

    def _against(self, contender: Contender) -> ArcFaceError | None:
        if contender.error is not None or contender.finding is None:
            return contender.error
        return self._examiner.objection(contender.finding, self.identity)

    def _rank(self) -> None:
        """Put the candidates in order, after every change."""
        with self._state:
            judged = [(contender, self._against(contender)) for contender in self._roster.by_preference()]
            before, after = self.standing, standing(judged, self._roster.silences(), self._wanted.urls)
            self.standing = after
        # Not with the lock held: a handler of the log may ask for the reports.
        log_change(before, after, is_first=not self.has_looked)
