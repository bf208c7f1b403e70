"""The flags that say which server, and the settings that come of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..settings import PipelineSettings


def add_connection_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that every command has which calls a server."""
    parser.add_argument("--url", metavar="HOST:PORT", help="gRPC address of the server; several with commas")
    parser.add_argument("--timeout-s", type=float, metavar="S", help="seconds that one request may take")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings, as config/pipeline/embedding.yaml"
    )
    parser.add_argument("--root-certificates", type=Path, metavar="PEM", help="use TLS, trusting these")
    parser.add_argument("--private-key", type=Path, metavar="PEM", help="the client's key, for mutual TLS")
    parser.add_argument("--certificate-chain", type=Path, metavar="PEM", help="its certificate")


def settings_from(arguments: argparse.Namespace, **flags: object) -> PipelineSettings:
    """Read the settings, with what the flags say before all else.

    Args:
        arguments: The parsed arguments.
        flags: Further settings that the command has flags for, by key; None does not count.

    Raises:
        ConfigError: As ``load_pipeline_settings``.
    """
    from ..settings import load_pipeline_settings  # brings NumPy, for which `--help` need not wait

    connection = {
        "triton.url": arguments.url,
        "triton.request_timeout_s": arguments.timeout_s,
        "triton.tls.root_certificates": arguments.root_certificates,
        "triton.tls.private_key": arguments.private_key,
        "triton.tls.certificate_chain": arguments.certificate_chain,
    }
    return load_pipeline_settings(arguments.config, arguments=connection | flags)
