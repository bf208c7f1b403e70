"""Settings of the client: which server, and which model; see ``layers`` for where they come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .client import DEFAULT_MAX_IN_FLIGHT, DEFAULT_MODEL, DEFAULT_REQUEST_TIMEOUT_S, EmbeddingClient
from .connection import Tls
from .layers import Defaults, boolean, read_layers

DEFAULT_PATH: Final = Path("config/pipeline/embedding.yaml")


@dataclass(frozen=True, kw_only=True)
class TritonSettings:
    """Which server, which model, and within what limits; the attributes are ``EmbeddingClient``'s."""

    url: str
    model: str
    version: int | None
    request_timeout_s: float
    max_in_flight: int
    tls: Tls | None

    def client(self) -> EmbeddingClient:
        """Make a client with these settings."""
        return EmbeddingClient(
            self.url,
            self.model,
            self.version,
            request_timeout_s=self.request_timeout_s,
            max_in_flight=self.max_in_flight,
            tls=self.tls,
        )


_DEFAULTS: Final[Defaults] = {
    "triton.url": (str, "localhost:8001"),
    "triton.model": (str, DEFAULT_MODEL),
    "triton.version": (int, None),
    "triton.request_timeout_s": (float, DEFAULT_REQUEST_TIMEOUT_S),
    "triton.max_in_flight": (int, DEFAULT_MAX_IN_FLIGHT),
    "triton.tls.enabled": (boolean, False),
    "triton.tls.root_certificates": (Path, None),
    "triton.tls.private_key": (Path, None),
    "triton.tls.certificate_chain": (Path, None),
}


def load_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    arguments: Mapping[str, object] | None = None,
) -> TritonSettings:
    """Read the settings.

    Args:
        path: A YAML file; None takes ``config/pipeline/embedding.yaml`` where that exists.
        environment: Environment variables.
        arguments: Values by key that go before all others; those that are None do not count.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown, or a value is of the wrong kind.
    """
    if path is None and DEFAULT_PATH.is_file():
        path = DEFAULT_PATH
    values = read_layers(_DEFAULTS, path, environment=environment, arguments=arguments)
    tls = {key.removeprefix("triton.tls."): values.pop(key) for key in _DEFAULTS if "tls" in key}
    wants_tls = tls.pop("enabled") or any(tls.values())
    plain = {key.removeprefix("triton."): value for key, value in values.items()}
    return TritonSettings(**plain, tls=Tls(**tls) if wants_tls else None)
