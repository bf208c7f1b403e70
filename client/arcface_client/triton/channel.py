"""How a client connects: TLS, message sizes, and gRPC's own retries."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from ..errors import ConfigError, InputError
from .forks import MadeHere
from .server_state import models_from_index
from .status import PROBE_TIMEOUT_S, Aftermath, aftermath_of_failed_probe, may_be_restricted
from .tls import Tls

_MAX_MESSAGE_BYTES: Final = 2**31 - 1
_RETRY_BUFFER_BYTES: Final = 64 << 20
"""gRPC drops a call's retries when its request does not fit here; its default holds a single crop."""

_HELLO_TIMEOUT_MS: Final = 5_000

_NEVER: Final = "DATA_LOSS"
"""A status that no Triton answers with."""

_END_S: Final = 0.5
"""How long to wait for gRPC to end a connection, in seconds."""


class _TritonClient(triton.InferenceServerClient):  # type: ignore[misc]
    """tritonclient's client, whose own end fails when Ctrl-C comes before its beginning is over."""

    _stream = None
    _channel = None

    def close(self) -> None:
        if self._channel is not None:
            super().close()


class Connection:
    """A connection to a server, which clients of several of its models may share.

    Questions about the server go over a TCP connection of their own, so that they do not wait behind crops.

    Args:
        url: ``host:port`` of the server's gRPC service.
        tls: Certificates; None connects without encryption.
        retries: Let gRPC itself try again what the server did not take. Off where somebody else can be
            asked meanwhile.

    Raises:
        ConfigError: The URL cannot be used.
    """

    def __init__(self, url: str, tls: Tls | None = None, *, retries: bool = True) -> None:
        self.url = url
        self.tls = tls
        self.closed = False
        self.made_here = MadeHere(f"The client of {url}")
        """To be checked before it is used."""

        self._dropped: str | None = None
        self._answered_at = -math.inf
        self._arguments = triton_arguments(url, tls, retries=retries)
        self._lock = threading.Lock()
        self.triton = _TritonClient(**self._arguments)
        """tritonclient's client as it is now; to be fetched for each call."""
        self._questions = _TritonClient(**self._arguments)

    def drop(self, why: str) -> None:
        """Break it off: calls that are under way fail at once, and the next one connects anew."""
        with self._lock:
            if self.closed:
                return
            self._dropped = why
            hung = self.triton, self._questions
            self.triton, self._questions = (_TritonClient(**self._arguments) for _ in hung)
        _end(*hung)

    def why_dropped(self, server: Any) -> str | None:
        """Why one of tritonclient's clients, which was ``triton`` once, was dropped; None when it was not."""
        return None if server is self.triton else self._dropped

    def close(self) -> None:
        """End it; calls that are under way fail."""
        if self.made_here.is_forked:
            return  # what there is to close is the parent's
        with self._lock:
            if self.closed:
                return
            self.closed = True
        _end(self.triton, self._questions)

    def answered(self) -> None:
        """Note that an answer to a request came."""
        self._answered_at = time.monotonic()

    def answered_since(self, moment: float) -> bool:
        """Whether one came after a moment of ``time.monotonic``: then the server is slow, but not gone."""
        return self._answered_at >= moment

    def ask(self, timeout_s: float = PROBE_TIMEOUT_S) -> Aftermath:
        """Ask the server for its models."""
        try:
            index = self._questions.get_model_repository_index(client_timeout=timeout_s)
        except InferenceServerException as error:
            is_live = may_be_restricted(error) and self.is_live(timeout_s)
            return aftermath_of_failed_probe(error, is_live=is_live)
        except ValueError:  # closed or dropped meanwhile
            return Aftermath(answers=False, said="the connection was closed")
        return Aftermath(answers=True, models=models_from_index(index))

    def successes(self, timeout_s: float = PROBE_TIMEOUT_S) -> Mapping[tuple[str, int], int]:
        """How many requests each version has served since its load; empty when the server does not say."""
        try:
            answer = self._questions.get_inference_statistics(client_timeout=timeout_s)
        except (InferenceServerException, ValueError):
            return {}
        return {
            (model.name, int(model.version)): model.inference_stats.success.count
            for model in answer.model_stats
        }

    def is_live(self, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
        """Whether the server answers at all."""
        try:
            self._questions.is_server_live(client_timeout=timeout_s)
        except InferenceServerException as error:
            return aftermath_of_failed_probe(error).answers
        except ValueError:  # closed or dropped meanwhile, by somebody who knows why
            return True
        return True


def _end(*clients: _TritonClient) -> None:
    """Close clients, but wait only a moment: gRPC waits for ever for a call that Ctrl-C left half begun."""
    threads = [threading.Thread(target=client.close, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_END_S)


class Shared(Protocol):
    """A connection that several clients go by, whichever of the two."""

    url: str
    tls: Tls | None


def check_goes_by(connection: Shared, url: str, tls: Tls | None) -> None:
    """Check that what a client is told beside a connection is so.

    Raises:
        InputError: The connection goes to another server, or has other certificates.
    """
    if url != connection.url:
        raise InputError(f"The client is for {url}, but its connection goes to {connection.url}.")
    if tls not in (None, connection.tls):
        raise InputError(
            f"tls is given beside a connection to {url} that was made with other certificates; give it to "
            "the connection instead."
        )


def triton_arguments(url: str, tls: Tls | None, *, retries: bool = True) -> dict[str, Any]:
    """Arguments for ``InferenceServerClient``, of tritonclient's gRPC client and of its asyncio twin.

    Raises:
        ConfigError: The URL is not ``host:port``.
    """
    host, _, port = url.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"The server's URL is {url!r}; expected host:port of its gRPC service, as localhost:8001."
        )
    arguments: dict[str, Any] = {"url": url, "channel_args": _channel_arguments(retries)}
    if tls is not None:
        arguments["ssl"] = True
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(tls, name)
            arguments[name] = None if path is None else str(path)
    return arguments


def _channel_arguments(retries: bool) -> list[tuple[str, Any]]:
    # Channel arguments replace tritonclient's own, so the message sizes have to be said again.
    return [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # Without retries, too: only with its retry layer does gRPC end a call in time whose request is stuck
        # in the socket of a server that hangs.
        ("grpc.enable_retries", 1),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        # An embedding is the same however often it is asked for, so trying again is safe.
        ("grpc.service_config", json.dumps(_retry_policy("UNAVAILABLE" if retries else _NEVER))),
        # Two clients in one process do not share a connection, nor the state of a dead one.
        ("grpc.use_local_subchannel_pool", 1),
        # A server that is back is found while the retries last; gRPC's own waits grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
        # How long a server may take to say hello, whatever the name; gRPC's own is 20 s.
        ("grpc.min_reconnect_backoff_ms", _HELLO_TIMEOUT_MS),
    ]


def _retry_policy(status: str) -> dict[str, Any]:
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": [status],
    }
    return {
        "methodConfig": [{"name": [{"service": "inference.GRPCInferenceService"}], "retryPolicy": policy}]
    }
