"""What goes on in the background for as long as an embedder serves."""

from __future__ import annotations

import time

from ..backends.last_resort import LastResort
from ..triton.deadline import Deadline
from ..triton.status import unanswered
from .intervals import Rhythm
from .pool import LONGEST_LOOK_S, Selector
from .repeater import Repeater
from .server import Server


class Watcher:
    """Keeps a selection up to date, and callers from waiting for a server that hangs.

    Args:
        selector: The selection.
        last_resort: What may serve instead of any server; None where nothing may.
        rhythm: How often to look.
    """

    def __init__(self, selector: Selector, last_resort: LastResort | None, rhythm: Rhythm) -> None:
        self._selector = selector
        self._last_resort = last_resort
        self._liveness_s = rhythm.liveness_s
        # Two threads, since an examination may last and a hung server must not.
        self._repeaters = (
            Repeater(self._look, rhythm.recheck_s, "arcface-recheck"),
            Repeater(self._check_liveness, rhythm.liveness_s, "arcface-liveness"),
        )

    def close(self, timeout_s: float = 2.0) -> None:
        """End the threads; one that waits for a server ends once that answers or is disconnected."""
        deadline = time.monotonic() + timeout_s
        for repeater in self._repeaters:
            repeater.end()
        for repeater in self._repeaters:
            repeater.close(max(0.0, deadline - time.monotonic()))

    def _look(self) -> None:
        self._selector.look(Deadline(LONGEST_LOOK_S))
        if self._last_resort is not None:
            self._last_resort.let_go_if_idle()

    def _check_liveness(self) -> None:
        for server in self._selector.servers:
            if server.busy and self._is_hung(server) and self._can_do_without(server):
                self._drop(server)

    def _can_do_without(self, server: Server) -> bool:
        """Whether nobody serves there, or somebody else can; where nobody can, it is better to wait."""
        servers = {contender.server for contender in self._selector.standing.ranking}
        return servers != {server} or (self._last_resort is not None and self._last_resort.prepare())

    def _is_hung(self, server: Server) -> bool:
        asked_at = time.monotonic()
        is_live = server.connection.is_live(self._liveness_s)
        return not (is_live or server.connection.answered_since(asked_at))

    def _drop(self, server: Server) -> None:
        why = f"it did not say within {self._liveness_s:g} s that it is alive"
        self._selector.gone(server, unanswered(server.url, why))
        server.connection.drop(why)
