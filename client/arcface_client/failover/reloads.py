"""Asks a server whether it has loaded candidates anew since the last look."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from ..triton.channel import Connection
from ..triton.deadline import Deadline
from .replica import Contender

COUNTED_WITHIN_S: Final = 0.05
"""How long a server may take to count what it has answered, in seconds."""


def reloaded(
    contenders: Sequence[Contender], connection: Connection, deadline: Deadline, timeout_s: float
) -> Sequence[Contender]:
    """Compare how often each candidate of a server has served with what it must have; see ``Loads``.

    Args:
        contenders: The candidates.
        connection: To their server.
        deadline: When to have ended.
        timeout_s: How long the server may take to answer.

    Returns:
        Those that have served too little.
    """
    least = {contender: contender.loads.least for contender in contenders}
    counts = _counts(contenders, connection, deadline.remaining_s(timeout_s))
    if any(count < least[contender] for contender, count in counts.items()):
        # Triton answers first and counts then: what it has answered, it has counted a moment later.
        time.sleep(COUNTED_WITHIN_S)
        counts = _counts(contenders, connection, deadline.remaining_s(timeout_s))
    for contender, count in counts.items():
        contender.loads.seen(count)
    return [contender for contender, count in counts.items() if count < least[contender]]


def _counts(
    contenders: Sequence[Contender], connection: Connection, timeout_s: float
) -> Mapping[Contender, int]:
    served = connection.successes(timeout_s)
    keys = {contender: (contender.candidate.model, contender.version or 0) for contender in contenders}
    return {contender: served[key] for contender, key in keys.items() if key in served}
