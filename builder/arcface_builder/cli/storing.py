"""The arguments that say where plans are kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from arcface_client.cli.commandline import utf8_path
from arcface_client.settings import TENSORRT_PATH, TensorRtSettings

from ..store import PlanStore, open_store

BUCKET_KEY: Final = "tensorrt.engine_s3_bucket"


def add_storing(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and that of the settings which say the rest."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"settings; default: {TENSORRT_PATH}")
    parser.add_argument(
        "--bucket", metavar="NAME", help=f"S3 bucket to share plans through; default: {BUCKET_KEY}"
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="another S3 than Amazon's")
    parser.add_argument(
        "--cache-dir",
        type=utf8_path,
        metavar="DIR",
        help="of the local cache; default: $ARCFACE_CACHE_DIR, else arcface-triton in $XDG_CACHE_HOME or "
        "~/.cache",
    )


def store_from(arguments: argparse.Namespace, settings: TensorRtSettings) -> PlanStore:
    """Open the store that arguments and settings name; raises what ``open_store`` does."""
    return open_store(
        settings.engine_s3_bucket, endpoint_url=arguments.endpoint_url, cache_dir=arguments.cache_dir
    )
