"""How a client connects: TLS, message sizes, and gRPC's own retries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError

_MAX_MESSAGE_BYTES: Final = 2**31 - 1
_RETRY_BUFFER_BYTES: Final = 64 << 20
"""gRPC drops a call's retries when its request does not fit here; its default holds a single crop."""

_RETRY_POLICY: Final = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                # An embedding is the same however often it is asked for, so trying again is safe.
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Certificates for an encrypted connection; all are PEM files.

    Attributes:
        root_certificates: Who may have signed the server's certificate; None takes gRPC's own list.
        private_key: The client's key, for mutual TLS.
        certificate_chain: The client's certificate, for mutual TLS.
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None

    def __post_init__(self) -> None:
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"tls.{name} is {path}, which is no file; give the path of a PEM file.")
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ConfigError(
                "Mutual TLS needs both tls.private_key and tls.certificate_chain; only one is set."
            )


def triton_arguments(url: str, tls: Tls | None) -> dict[str, Any]:
    """Arguments for ``InferenceServerClient``, of tritonclient's gRPC client and of its asyncio twin.

    Raises:
        ConfigError: The URL is not ``host:port``.
    """
    host, _, port = url.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"The server's URL is {url!r}; expected host:port of its gRPC service, as localhost:8001."
        )
    arguments: dict[str, Any] = {"url": url, "channel_args": _channel_arguments()}
    if tls is not None:
        arguments["ssl"] = True
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(tls, name)
            arguments[name] = None if path is None else str(path)
    return arguments


def _channel_arguments() -> list[tuple[str, Any]]:
    # Channel arguments replace tritonclient's own, so the message sizes have to be said again.
    return [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.enable_retries", 1),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        ("grpc.service_config", json.dumps(_RETRY_POLICY)),
        # Two clients in one process do not share a connection, nor the state of a dead one.
        ("grpc.use_local_subchannel_pool", 1),
        # A server that is back is found while the retries last; gRPC's own waits grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
    ]
