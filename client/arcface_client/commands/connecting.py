"""The flags that say which server, and the settings that come of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..settings import TritonSettings


def add_connection_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that every command has which calls a server."""
    parser.add_argument("--url", metavar="HOST:PORT", help="gRPC address of the server")
    parser.add_argument("--timeout-s", type=float, metavar="S", help="seconds that one request may take")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings, as config/pipeline/embedding.yaml"
    )
    parser.add_argument("--root-certificates", type=Path, metavar="PEM", help="use TLS, trusting these")
    parser.add_argument("--private-key", type=Path, metavar="PEM", help="the client's key, for mutual TLS")
    parser.add_argument("--certificate-chain", type=Path, metavar="PEM", help="its certificate")


def settings_from(
    arguments: argparse.Namespace, *, model: str | None = None, version: int | None = None
) -> TritonSettings:
    """Read the settings, with what the flags say before all else.

    Args:
        arguments: The parsed arguments.
        model: Model that the command names.
        version: Its version.

    Raises:
        ConfigError: As ``load_settings``.
    """
    from ..settings import load_settings  # brings gRPC, for which `--help` need not wait

    flags = {
        "triton.url": arguments.url,
        "triton.model": model,
        "triton.version": version,
        "triton.request_timeout_s": arguments.timeout_s,
        "triton.tls.root_certificates": arguments.root_certificates,
        "triton.tls.private_key": arguments.private_key,
        "triton.tls.certificate_chain": arguments.certificate_chain,
    }
    return load_settings(arguments.config, arguments=flags)
