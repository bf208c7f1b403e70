"""What a caller sets for requests: limits and certificates. Nothing here needs gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError, InputError

DEFAULT_REQUEST_TIMEOUT_S: Final = 60.0
DEFAULT_MAX_IN_FLIGHT: Final = 8

DEFAULT_MAX_DRIFT_COSINE: Final = 0.001
"""The largest cosine distance from the reference embeddings that passes."""

LONGEST_REQUEST_S: Final = 86_400.0
"""A day; gRPC counts far longer times as already over."""

_PEM_FILES: Final = ("root_certificates", "private_key", "certificate_chain")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Certificates for an encrypted connection; all are PEM files.

    Attributes:
        root_certificates: Authorities that may sign the server's certificate; None means gRPC's own list.
        private_key: The client's key, for mutual TLS.
        certificate_chain: The client's certificate, for mutual TLS.

    Raises:
        ConfigError: A file is missing or not PEM, or only one of the client's two files is set.
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None

    def __post_init__(self) -> None:
        for name in _PEM_FILES:
            path = getattr(self, name)
            if path is None:
                continue
            if not Path(path).is_file():
                raise ConfigError(f"tls.{name} is {path}, which is not a file; give the path of a PEM file.")
            # gRPC would only say that it cannot connect.
            if b"-----BEGIN " not in Path(path).read_bytes():
                raise ConfigError(f"tls.{name} is {path}, which is not a PEM file: no -----BEGIN line.")
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ConfigError("Mutual TLS needs both tls.private_key and tls.certificate_chain; one is set.")


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits and certificates of requests.

    Attributes:
        request_timeout_s: Seconds that a single request may take, its wait in the server's queue included.
        max_in_flight: Requests that one call keeps with the server at a time.
        tls: Certificates; None connects without encryption.

    Raises:
        InputError: A limit is out of its range.
    """

    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if not 0 < self.request_timeout_s <= LONGEST_REQUEST_S:
            raise InputError(
                f"request_timeout_s is {self.request_timeout_s:g}; expected a number of seconds above 0, "
                f"at most {LONGEST_REQUEST_S:g}."
            )
        if self.max_in_flight < 1:
            raise InputError(f"max_in_flight is {self.max_in_flight}; expected 1 or more.")


def check_max_drift_cosine(value: float) -> None:
    """Check the tolerance of drift.

    Raises:
        InputError: It is not above 0.
    """
    if not value > 0:
        raise InputError(f"max_drift_cosine is {value}; expected a number above 0.")
