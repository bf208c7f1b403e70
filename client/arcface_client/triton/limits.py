"""What a caller sets for requests: limits and certificates. Nothing here needs gRPC."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..contract import CROP_BYTES
from ..errors import ConfigError, InputError

DEFAULT_MAX_DRIFT_COSINE: Final = 0.001
"""The largest cosine distance from the reference embeddings that passes."""

LONGEST_REQUEST_S: Final = 86_400.0
"""A day; gRPC counts far longer times as already over."""

_REQUEST_BYTES: Final = 4096
"""What a request has besides its crops, at most."""


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
        for name, path in vars(self).items():
            if path is None:
                continue
            try:
                content = Path(path).read_bytes()
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"tls.{name} is {path}, which cannot be read ({error}); give the path of a PEM file."
                ) from error
            # gRPC would only say that it cannot connect.
            if b"-----BEGIN " not in content:
                raise ConfigError(f"tls.{name} is {path}, which is not a PEM file: no -----BEGIN line.")
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ConfigError("Mutual TLS needs both tls.private_key and tls.certificate_chain; one is set.")


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits of requests, and what they carry to be let in.

    Attributes:
        request_timeout_s: Seconds that a single request may take, its wait in the server's queue included.
        max_in_flight: Requests that one call keeps with the server at a time.
        tls: Certificates; None connects without encryption.
        metadata: Sent with every request, for example
            ``{"triton-grpc-protocol-infer-key": "secret"}`` for a protocol that Triton restricts. A value
            ``@FILE`` is read from that file for each request.
        token_file: File of a bearer token, sent as ``authorization``; read for each request, since tokens
            are renewed.
        max_request_mb: Largest request in MiB, for a proxy that takes no larger one; None for no limit.

    Raises:
        InputError: A limit is out of its range, or the metadata cannot be sent.
    """

    request_timeout_s: float = 60.0
    max_in_flight: int = 8
    tls: Tls | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)  # has secrets
    token_file: Path | None = None
    max_request_mb: float | None = None

    def __post_init__(self) -> None:
        for key, value in self.metadata.items():
            if not (re.fullmatch(r"[0-9a-z_.-]+", key) and value.isascii() and value.isprintable()):
                raise InputError(
                    f"metadata has the key {key!r}; expected a key of a-z, 0-9, '_', '-' and '.', and a "
                    "value of printable ASCII."
                )
        if self.max_request_mb is not None and self.crops_of_a_request < 1:
            raise InputError(
                f"max_request_mb is {self.max_request_mb:g}; expected at least 0.04, which one crop takes."
            )
        if not 0 < self.request_timeout_s <= LONGEST_REQUEST_S:
            raise InputError(
                f"request_timeout_s is {self.request_timeout_s:g}; expected a number of seconds above 0, "
                f"at most {LONGEST_REQUEST_S:g}."
            )
        if self.max_in_flight < 1:
            raise InputError(f"max_in_flight is {self.max_in_flight}; expected 1 or more.")

    @property
    def crops_of_a_request(self) -> int:
        """How many crops a request may have."""
        if self.max_request_mb is None:
            return sys.maxsize
        return int((self.max_request_mb * 2**20 - _REQUEST_BYTES) // CROP_BYTES)

    def headers(self) -> dict[str, str]:
        """The metadata of a request.

        Raises:
            ConfigError: A token's or key's file cannot be read, or is empty.
        """
        headers = {
            name: _secret(Path(value[1:]), f"triton.metadata.{name}") if value.startswith("@") else value
            for name, value in self.metadata.items()
        }
        if self.token_file is not None:
            headers["authorization"] = f"Bearer {_secret(Path(self.token_file), 'triton.token_file')}"
        return headers


def _secret(path: Path, setting: str) -> str:
    """Read a token or key from its file.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    what = "token" if setting == "triton.token_file" else "key"
    try:
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise ConfigError(
            f"Cannot read the {what} from {path}: {why}. Write the {what} there, or set "
            f"{setting} to its file."
        ) from error
    if not secret:
        raise ConfigError(f"{path} is empty; expected a {what}.")
    return secret
