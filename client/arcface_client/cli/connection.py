"""The flags that say which server, and the settings that follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from ..settings import PipelineSettings

_PANEL: Final = "Server"

Url = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="gRPC address of the server; several with commas.",
        rich_help_panel=_PANEL,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout-s", help="Seconds that one request may take.", rich_help_panel=_PANEL),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Settings file (default: config/pipeline/embedding.yaml if it exists).", rich_help_panel=_PANEL
    ),
]
RootCertificates = Annotated[
    Path | None,
    typer.Option(metavar="PEM", help="Use TLS, and trust these certificates.", rich_help_panel=_PANEL),
]
PrivateKey = Annotated[
    Path | None,
    typer.Option(metavar="PEM", help="The client's key, for mutual TLS.", rich_help_panel=_PANEL),
]
CertificateChain = Annotated[
    Path | None,
    typer.Option(metavar="PEM", help="The client's certificate, for mutual TLS.", rich_help_panel=_PANEL),
]


def settings_of(context: typer.Context, **more: object) -> PipelineSettings:
    """Read the settings; what the flags of this module say takes precedence.

    Args:
        context: The command's context, with its flags.
        more: Further settings that the command has flags for, by key; None does not count.

    Raises:
        ConfigError: As ``load_pipeline_settings``.
    """
    from ..settings import load_pipeline_settings  # brings pydantic, for which `--help` need not wait

    flags = context.params
    connection = {
        "triton.url": flags["url"],
        "triton.request_timeout_s": flags["timeout_s"],
        "triton.tls.root_certificates": flags["root_certificates"],
        "triton.tls.private_key": flags["private_key"],
        "triton.tls.certificate_chain": flags["certificate_chain"],
    }
    config = flags["config"]  # a string with an older Typer
    return load_pipeline_settings(Path(config) if config else None, arguments=connection | more)
