"""One server as the selection sees it: a connection that its candidates share, and the calls under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..triton.limits import DEFAULT_MAX_IN_FLIGHT, DEFAULT_REQUEST_TIMEOUT_S, check_limits
from ..triton.tls import Tls

if TYPE_CHECKING:
    from ..triton.client import EmbeddingClient


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits and certificates of requests.

    Attributes:
        request_timeout_s: See ``EmbeddingClient``, also for the next two.
        max_in_flight: Requests that one call keeps with the server at a time.
        tls: Certificates.
    """

    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    tls: Tls | None = None

    def __post_init__(self) -> None:
        check_limits(self.request_timeout_s, self.max_in_flight)


class Server:
    """A Triton server that candidates are at.

    Raises:
        ConfigError: The URL cannot be used. Nothing is sent before the first call.
    """

    def __init__(self, url: str, limits: RequestLimits) -> None:
        from ..triton.channel import Connection  # brings gRPC, which settings do without

        self.url = url
        # Without gRPC's own retries: while they last, the next candidate could have answered.
        self.connection = Connection(url, limits.tls, retries=False)
        self._limits = limits
        self._lock = threading.Lock()
        self._calls = 0

    def client(self, model: str, version: int | None, *, modest: bool = False) -> EmbeddingClient:
        """A client of one of its models, over the connection that all share.

        Args:
            model: The model.
            version: Its version.
            modest: Send one request at a time, so that a queue has room for others.
        """
        from ..triton.client import EmbeddingClient

        return EmbeddingClient(
            self.url,
            model,
            version,
            request_timeout_s=self._limits.request_timeout_s,
            max_in_flight=1 if modest else self._limits.max_in_flight,
            connection=self.connection,
        )

    @contextmanager
    def call(self) -> Iterator[None]:
        """Mark a call as being under way here, so that the server is watched."""
        with self._lock:
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1

    @property
    def busy(self) -> bool:
        """Whether calls are under way here."""
        return self._calls > 0
