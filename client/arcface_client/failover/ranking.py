"""The order in which candidates serve now, and why others do not: a snapshot that calls go by."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ArcFaceError, OtherEmbeddingSpaceError
from ..observability.diagnostics import CandidateReport
from ..observability.served import Refusal
from .replica import Contender

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Standing:
    """What the selection knew at a moment; costs a call nothing but to read it.

    Attributes:
        ranking: The candidates that may serve, best first; those that are settling come last.
        refused: Those that may not, by preference, each with the reason.
        passed_over: For each of the ranking, those that it serves instead of.
        order: Every candidate, by preference.
    """

    ranking: tuple[Contender, ...] = ()
    refused: tuple[tuple[str, ArcFaceError], ...] = ()
    passed_over: Mapping[Contender, tuple[Refusal, ...]] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def preferred_to(self, contender: Contender) -> Sequence[str]:
        """Every candidate that goes before one, whether it may serve or not."""
        return self.order[: self.order.index(str(contender))]

    @property
    def first(self) -> str | None:
        """The candidate that gets every call it can take; None when nobody serves."""
        return next(map(str, self.ranking), None)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Everybody that may not serve, as reports list them."""
        return tuple(Refusal(name, str(error)) for name, error in self.refused)


def standing(
    contenders: Iterable[tuple[Contender, ArcFaceError | None]],
    silent: Mapping[str, ArcFaceError],
    urls: Sequence[str],
) -> Standing:
    """Take stock.

    Args:
        contenders: Every candidate, by preference, with what speaks against it.
        silent: URLs of servers of which no candidate is known, with the reason.
        urls: Every server's, by preference.
    """
    judged = list(contenders)
    refused = [(str(contender), error) for contender, error in judged if error is not None]
    good = [contender for contender, error in judged if error is None]
    # Settled ones first; the sort is stable, so each group keeps its preference.
    ranking = sorted(good, key=lambda contender: contender.breaker.state != "closed")
    passed_over = {}
    for contender in ranking:
        earlier = urls[: urls.index(contender.candidate.url)]
        better = [Refusal(anything_at(url), str(error)) for url, error in silent.items() if url in earlier]
        for other, error in judged:
            if other is contender:
                break
            if error is not None and not isinstance(error, OtherEmbeddingSpaceError):
                better.append(Refusal(str(other), str(error)))
            elif error is None and ranking.index(other) > ranking.index(contender):
                better.append(Refusal(str(other), "it failed a moment ago and is settling"))
        passed_over[contender] = tuple(better)
    unknown = [(anything_at(url), error) for url, error in silent.items()]
    order = tuple(str(contender) for contender, _ in judged)
    return Standing(tuple(ranking), (*refused, *unknown), passed_over, order)


def log_change(before: Standing, after: Standing, *, is_first: bool) -> None:
    """Log which candidate serves, if that has changed; for ``is_first``, nobody has missed one so far."""
    if before.first is None and after.first is not None:
        _log.log(logging.INFO if is_first else logging.WARNING, "%s serves", after.first)
    elif before.first != after.first:
        otherwise = "it is gone" if after.first is None else "the other is preferred"
        reason = dict(after.refused).get(before.first or "", otherwise)
        _log.warning("%s serves now, not %s: %s", after.first or "No candidate", before.first, reason)


def anything_at(url: str) -> str:
    """The name in reports of whatever a server may have that says nothing of it."""
    return f"any model at {url}"


def report(contender: Contender, error: ArcFaceError | None, *, serving: bool) -> CandidateReport:
    """Describe a candidate for diagnostics.

    Args:
        contender: The candidate.
        error: What speaks against it.
        serving: Whether it is the first choice.
    """
    if error is not None:
        state = "failing" if contender.breaker.state == "open" else "refused"
    elif serving:
        state = "serving"
    else:
        state = "standing by" if contender.breaker.state == "closed" else "settling"
    return CandidateReport(
        candidate=str(contender),
        state=state,
        reason=None if error is None else str(error),
        drift=None if contender.finding is None else contender.finding.drift,
    )
