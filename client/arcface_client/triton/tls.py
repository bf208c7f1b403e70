"""Certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError

_FILES: Final = ("root_certificates", "private_key", "certificate_chain")


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
        for name in _FILES:
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"tls.{name} is {path}, which is no file; give the path of a PEM file.")
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ConfigError(
                "Mutual TLS needs both tls.private_key and tls.certificate_chain; only one is set."
            )
        for name in _FILES:
            path = getattr(self, name)
            # gRPC says no more of such a file than that it cannot connect.
            if path is not None and b"-----BEGIN " not in Path(path).read_bytes():
                raise ConfigError(f"tls.{name} is {path}, which is no PEM file: it has no -----BEGIN line.")
