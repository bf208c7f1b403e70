"""How the clients connect: TLS, message sizes, gRPC's own retries, and liveness."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any, Final

from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from ..errors import ArcFaceError, ConfigError, ServerUnavailableError
from ..models.release import Release
from ..observability.tracing import continue_trace
from .fork_guard import ForkGuard
from .limits import RequestLimits, Tls
from .status import PROBE_TIMEOUT_S, Reply, Target, answered, closed, models_from_index

_MAX_MESSAGE_BYTES: Final = 2**31 - 1
_RETRY_BUFFER_BYTES: Final = 64 << 20
"""gRPC drops a call's retries if its request does not fit; gRPC's default holds a single crop."""

_HELLO_TIMEOUT_MS: Final = 5_000

_STUCK_MS: Final = 5_000
"""How long the server's machine may take nothing of what was sent, until the connection is given up."""

_NO_PINGS_MS: Final = 2**31 - 2
"""gRPC's longest wait between pings: 25 days. One more would turn off what comes with them."""

_NEVER: Final = "DATA_LOSS"
"""A status that no Triton answers with."""

_CLOSE_S: Final = 0.5
"""How long to wait for gRPC to close a channel, in seconds."""


class Connection:
    """A connection to a server, which clients of several of its models may share.

    Questions about the server go over a TCP connection of their own, so that they do not wait behind crops.

    Args:
        url: ``host:port`` of the server's gRPC service; ``dns:///host:port`` spreads the requests over all
            servers behind the name; ``unix:PATH`` is a socket on this machine.
        limits: Limits, certificates and metadata of requests; None for the defaults.
        retries: Let gRPC itself repeat what the server did not take. Off if another server can be asked.

    Attributes:
        triton: tritonclient's client; read it anew for each call, since ``drop`` replaces it.
        crops_of_a_request: How many crops a request may have, as far as is known.

    Raises:
        ConfigError: The URL cannot be used.
    """

    def __init__(self, url: str, limits: RequestLimits | None = None, *, retries: bool = True) -> None:
        limits = limits or RequestLimits()
        self.url = url
        self.crops_of_a_request = limits.crops_of_a_request
        self._limits = limits
        self._arguments = _triton_arguments(url, limits.tls, retries=retries)
        self._fork_guard = ForkGuard(f"The client of {url}")
        self._lock = threading.Lock()
        self._closed = False
        self._dropped = ""
        self._answered_at = -math.inf
        self.triton, self._questions = self._connect(), self._connect()

    def check(self, target: Target) -> None:
        """Check that a call may begin.

        Raises:
            InputError: This process was forked since the connection was made, or the connection is closed.
        """
        self._fork_guard.check()
        if self._closed:
            raise closed(target)

    def broken(self, client: Any, target: Target) -> ArcFaceError | None:
        """The error if ``close`` or ``drop`` ended a call that went over ``client``; None if neither did."""
        if self._closed:
            return closed(target)
        if client is not self.triton:
            return ServerUnavailableError(f"The connection to {self.url} was dropped: {self._dropped}.")
        return None

    def drop(self, why: str) -> None:
        """Break the connection: calls that are under way fail at once, and the next one connects anew."""
        with self._lock:
            if self._closed:
                return
            self._dropped = why
            old = self.triton, self._questions
            self.triton, self._questions = self._connect(), self._connect()
        _close(*old)

    def close(self) -> None:
        """Close the connection; calls that are under way fail."""
        if self._fork_guard.is_forked:
            return  # the connection is the parent process's
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _close(self.triton, self._questions)

    def make_smaller(self, crops: int) -> bool:
        """Note that a request of so many crops was too large; returns whether a smaller one can be tried."""
        with self._lock:
            self.crops_of_a_request = min(self.crops_of_a_request, max(1, crops // 2))
        return crops > 1

    def answered(self) -> None:
        """Note that a request was answered."""
        self._answered_at = time.monotonic()

    def answered_since(self, moment: float) -> bool:
        """Whether a request was answered after a moment of ``time.monotonic``."""
        return self._answered_at >= moment

    def ask(self, timeout_s: float = PROBE_TIMEOUT_S) -> Reply:
        """Ask the server for its models."""
        try:
            index = self._questions.get_model_repository_index(client_timeout=timeout_s)
        except InferenceServerException as error:
            return Reply(answered(error), problem=error.message() or "no message")
        except ValueError:  # closed or dropped meanwhile
            return Reply(answers=False, problem="the connection was closed")
        return Reply(answers=True, models=models_from_index(index))

    def release(self, model: str, timeout_s: float = PROBE_TIMEOUT_S) -> Release | None:
        """What the server's configuration of a model says of its releases; None if it does not answer."""
        try:
            config = self._questions.get_model_config(model, client_timeout=timeout_s).config
        except (InferenceServerException, ValueError):  # not loaded, or the connection was closed meanwhile
            return None
        return Release.read({name: one.string_value for name, one in config.parameters.items()})

    def is_live(self, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
        """Whether the server answers at all; True as well if the connection was closed meanwhile."""
        try:
            self._questions.is_server_live(client_timeout=timeout_s)
        except InferenceServerException as error:
            return answered(error)
        except ValueError:
            return True
        return True

    def _connect(self) -> triton.InferenceServerClient:
        client = triton.InferenceServerClient(**self._arguments)
        client.register_plugin(_Headers(self._limits))
        return client


class _Headers(triton.InferenceServerClientPlugin):  # type: ignore[misc]
    """Adds the metadata, and the context of a trace, to each of tritonclient's requests."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits

    def __call__(self, request: Any) -> None:
        request.headers = self._limits.headers()
        continue_trace(request.headers)


def _close(*clients: triton.InferenceServerClient) -> None:
    # In threads, since gRPC waits for ever for a call that Ctrl-C interrupted while it began.
    threads = [threading.Thread(target=client.close, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_CLOSE_S)


def _triton_arguments(url: str, tls: Tls | None, *, retries: bool) -> dict[str, Any]:
    """Arguments for tritonclient's ``InferenceServerClient``.

    Raises:
        ConfigError: The URL cannot be used.
    """
    address = url.removeprefix("dns:").removeprefix("///")
    host, _, port = address.rpartition(":")
    is_local = url.startswith("unix:") and len(url) > len("unix:")
    if not is_local and (not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16):
        raise ConfigError(
            f"The server's URL is {url!r}; expected host:port of its gRPC service, for example "
            "localhost:8001, or dns:///host:port for several servers behind one name, or unix:PATH."
        )
    arguments: dict[str, Any] = {
        "url": url,
        "channel_args": _channel_arguments(retries, spread=url.startswith("dns:")),
    }
    if tls is not None:
        files = {name: None if path is None else str(path) for name, path in vars(tls).items()}
        arguments |= {"ssl": True} | files
    return arguments


def _channel_arguments(retries: bool, *, spread: bool) -> list[tuple[str, Any]]:
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        # An embedding is the same however often it is asked for, so a retry is safe.
        "retryableStatusCodes": ["UNAVAILABLE" if retries else _NEVER],
    }
    config = {
        "methodConfig": [{"name": [{"service": "inference.GRPCInferenceService"}], "retryPolicy": policy}],
        # By default gRPC sends everything to the first address of a name that answers.
        "loadBalancingConfig": [{"round_robin" if spread else "pick_first": {}}],
    }
    # Channel arguments replace tritonclient's own, so the message sizes have to be set again.
    return [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # Always on: only with its retry layer does gRPC end a call in time whose request is stuck in the
        # socket of a server that hangs.
        ("grpc.enable_retries", 1),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        ("grpc.service_config", json.dumps(config)),
        # Two clients in one process do not share a connection, nor the state of a dead one.
        ("grpc.use_local_subchannel_pool", 1),
        # A server that is back is found while the retries last; gRPC's own waits grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
        # How long a server may take to begin the connection; gRPC's own limit is 20 s.
        ("grpc.min_reconnect_backoff_ms", _HELLO_TIMEOUT_MS),
        # TCP_USER_TIMEOUT, which gRPC sets only where it pings. Without it, a peer that ends its side and
        # reads nothing more holds the calls that are stuck there, whatever their deadline, and the closed
        # channel.
        ("grpc.keepalive_time_ms", _NO_PINGS_MS),
        ("grpc.keepalive_timeout_ms", _STUCK_MS),
    ]
