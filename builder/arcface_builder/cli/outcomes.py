"""What became of each of many plans, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Outcome:
    """What became of a plan."""

    key: str
    result: str
    problem: str | None = None


def tell(outcomes: Iterable[Outcome], *, as_json: bool) -> list[Outcome]:
    """Print outcomes as they come, or all of them as JSON, also where something ends them early."""
    told = []
    try:
        for outcome in outcomes:
            told.append(outcome)
            if not as_json:
                print(f"{outcome.result}: {outcome.problem or outcome.key}", flush=True)
    finally:
        if as_json:
            print(json.dumps([asdict(outcome) for outcome in told], indent=2))
    return told
