"""The flags that say which server, the settings that follow from them, and flags of several commands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..settings import PipelineSettings

_option = partial(typer.Option, rich_help_panel="Server")
_certificate = partial(_option, metavar="PEM")


Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]
Resize = Annotated[
    bool, typer.Option("--resize", help="Scale crops of another size instead of refusing them.")
]
Threshold = Annotated[
    float, typer.Option(min=-1, max=1, help="Cosine similarity from which two crops are one person.")
]


@dataclass(frozen=True)
class Server:
    """The flags that say which server; see ``terminal.with_shared_options``."""

    url: Annotated[
        str | None,
        _option(metavar="HOST:PORT", help="gRPC address of the server, or several with commas between them."),
    ] = None
    timeout_s: Annotated[float | None, _option(help="Seconds that one request may take.")] = None
    config: Annotated[
        Path | None,
        _option(help="Settings file (default: config/pipeline/embedding.yaml if it exists)."),
    ] = None
    root_certificates: Annotated[Path | None, _certificate(help="Use TLS, and trust these certificates.")] = (
        None
    )
    private_key: Annotated[Path | None, _certificate(help="The client's key, for mutual TLS.")] = None
    certificate_chain: Annotated[
        Path | None, _certificate(help="The client's certificate, for mutual TLS.")
    ] = None

    def settings(self, **more: object) -> PipelineSettings:
        """Read the settings; what the flags say takes precedence.

        Args:
            more: Further settings that the command has flags for, by key; None does not count.

        Raises:
            ConfigError: As ``load_pipeline_settings``.
        """
        from ..settings import load_pipeline_settings  # brings pydantic, for which `--help` need not wait

        arguments = {
            "triton.url": self.url,
            "triton.request_timeout_s": self.timeout_s,
            "triton.tls.root_certificates": self.root_certificates,
            "triton.tls.private_key": self.private_key,
            "triton.tls.certificate_chain": self.certificate_chain,
        }
        config = self.config  # a string with an older Typer
        return load_pipeline_settings(Path(config) if config else None, arguments=arguments | more)
