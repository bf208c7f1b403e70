"""Options that several commands have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from arcface_client.settings import TENSORRT_PATH

BUCKET_KEY: Final = "tensorrt.engine_s3_bucket"

_store_option = partial(typer.Option, rich_help_panel="Where plans are kept")


def recorded_path(value: str | Path) -> Path:
    """Read a path that goes into a manifest; Typer passes defaults through here, too.

    Raises:
        typer.BadParameter: It is empty, as an unset shell variable is, or its bytes are not UTF-8.
    """
    text = str(value)
    if not text:
        raise typer.BadParameter("the path is empty; give a name.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"{text!a} is not UTF-8; give another name.") from error
    return Path(text)


def flag(name: str) -> str:
    """The flag of a command's parameter."""
    return f"--{name.replace('_', '-')}"


Precision = Literal["fp32", "tf32", "fp16", "bf16", "mixed", "int8"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Option(help="Name that sibling models share, for example arcface_r100.")]
Repository = Annotated[
    Path, typer.Option(parser=recorded_path, metavar="DIR", help="Folder of the model repository.")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help=f"Settings; default: {TENSORRT_PATH}.")]
Bucket = Annotated[
    str | None,
    _store_option(
        metavar="NAME",
        help=f"S3 bucket to share plans through; default: {BUCKET_KEY}. Credentials and region come from "
        "where boto3 looks for them.",
    ),
]
ENDPOINT_HELP: Final = "An S3 service other than Amazon's."
EndpointUrl = Annotated[str | None, _store_option(metavar="URL", help=ENDPOINT_HELP)]
CacheDir = Annotated[
    Path | None,
    _store_option(
        parser=recorded_path,
        metavar="DIR",
        help="The local cache; default: $ARCFACE_CACHE_DIR, else arcface-triton in $XDG_CACHE_HOME or "
        "~/.cache.",
    ),
]
