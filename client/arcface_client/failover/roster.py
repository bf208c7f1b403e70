"""Every candidate that was seen so far, and the servers that say nothing of theirs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from ..errors import ArcFaceError, ModelNotFoundError, detached
from .discovery import Candidate, Wanted
from .intervals import Rhythm
from .replica import Contender
from .server import Server


class Roster:
    """The candidates of all servers. Not thread-safe: its owner holds a lock.

    Args:
        servers: The servers.
        wanted: What to prefer.
        rhythm: Of every candidate.
    """

    def __init__(self, servers: Sequence[Server], wanted: Wanted, rhythm: Rhythm) -> None:
        self._servers = servers
        self._wanted = wanted
        self._rhythm = rhythm
        self._contenders: dict[Candidate, Contender] = {}
        self._silent: dict[str, ArcFaceError] = {}

    def contender(self, candidate: Candidate) -> Contender:
        """What is known of a candidate, which is nothing when it is seen first."""
        if candidate not in self._contenders:
            server = next(server for server in self._servers if server.url == candidate.url)
            self._contenders[candidate] = Contender(candidate, server, self._rhythm)
        return self._contenders[candidate]

    def at(self, server: Server) -> list[Contender]:
        """The candidates of a server."""
        return [contender for contender in self._contenders.values() if contender.server is server]

    def by_preference(self) -> list[Contender]:
        """All candidates, the one to use first in front."""
        return sorted(self._contenders.values(), key=lambda one: self._wanted.preference(one.candidate))

    def listed(self, server: Server, seen: Container[Candidate], problem: ArcFaceError | None) -> None:
        """Withdraw what a server does not list; ``problem`` says why it lists nothing."""
        self._silent.pop(server.url, None)
        if problem is not None:
            self._silent[server.url] = detached(problem)
        for contender in self.at(server):
            if contender.candidate not in seen:
                contender.withdrawn(problem or ModelNotFoundError("the server does not list it any more"))

    def silences(self) -> Mapping[str, ArcFaceError]:
        """Why nothing is known of any candidate of a server, by its URL."""
        known = {contender.server.url for contender in self._contenders.values()}
        return {url: error for url, error in self._silent.items() if url not in known}
